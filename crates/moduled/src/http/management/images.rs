//! Routes about images of former modules (ours): to look is for whoever may open the
//! socket, to remove for operators.

use std::sync::Arc;

use edgekeep_daemon::server::{HttpError, Request, Response};

use crate::http::refuse;
use crate::http::{Rooms, called};
use crate::modules::images;

pub(super) async fn plan(rooms: Arc<Rooms>, _: Request) -> Result<Response, HttpError> {
    Ok(Response::ok(
        &images::planned(&rooms.modules).await.map_err(|error| refuse::of_look(&error))?,
    ))
}

pub(super) async fn collect(rooms: Arc<Rooms>, request: Request) -> Result<Response, HttpError> {
    rooms.gate.admit_operator(&called(&request)).await?;
    // It goes on when its caller hangs up: an image is removed or not, but never half.
    let collected = tokio::spawn(async move { images::collect_now(&rooms.modules).await });
    let collected = collected.await.map_err(|error| HttpError::hidden(&error))?;
    let plan = collected.map_err(|error| refuse::of_look(&error))?;
    Ok(Response::ok(&plan))
}
