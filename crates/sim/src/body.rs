//! Bodies of answers: whole, or wrong in the way in which they are sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Interval, interval};

use crate::exchange::Pace;

/// Time between two bytes of a slow body.
const SLOW: Duration = Duration::from_millis(200);

/// A body of an answer.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Bytes,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Whole,
    Endless,
    Slow(Interval),
    /// With its length as it was announced.
    Cut(u64),
}

/// A body that ends before its end.
#[derive(Debug, thiserror::Error)]
#[error("cut as the faults say")]
pub(crate) struct CutOff;

impl Body {
    pub(crate) fn new(bytes: Vec<u8>, pace: Pace) -> Self {
        let mut bytes = Bytes::from(bytes);
        let kind = match pace {
            Pace::Whole => Kind::Whole,
            Pace::Endless => Kind::Endless,
            Pace::Slow => Kind::Slow(interval(SLOW)),
            Pace::Cut => {
                let announced = bytes.len() as u64;
                bytes.truncate(bytes.len() / 2);
                Kind::Cut(announced)
            }
        };
        Self { bytes, kind }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let this = &mut *self;
        let next = match &mut this.kind {
            Kind::Endless => this.bytes.clone(),
            Kind::Slow(interval) => {
                ready!(interval.poll_tick(context));
                this.bytes.split_to(this.bytes.len().min(1))
            }
            Kind::Cut(_) if this.bytes.is_empty() => return Poll::Ready(Some(Err(CutOff))),
            Kind::Whole | Kind::Cut(_) => std::mem::take(&mut this.bytes),
        };
        Poll::Ready((!next.is_empty()).then(|| Ok(Frame::data(next))))
    }

    fn size_hint(&self) -> SizeHint {
        match self.kind {
            Kind::Whole => SizeHint::with_exact(self.bytes.len() as u64),
            Kind::Cut(announced) => SizeHint::with_exact(announced),
            Kind::Endless | Kind::Slow(_) => SizeHint::default(),
        }
    }
}
