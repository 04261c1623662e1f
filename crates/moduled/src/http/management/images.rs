//! Routes about images of former modules (ours): to look is for whoever may open the
//! socket, to remove for operators.

use std::sync::Arc;

use edgekeep_daemon::server::{HttpError, Request, Response};

use crate::keepers::images;
use crate::service::Moduled;

pub(super) async fn plan(service: Arc<Moduled>, _: Request) -> Result<Response, HttpError> {
    Ok(Response::ok(&images::planned(&service).await?))
}

pub(super) async fn collect(
    service: Arc<Moduled>,
    request: Request,
) -> Result<Response, HttpError> {
    service.admit_operator(&request)?;
    // It goes on when its caller hangs up: an image is removed or not, but never half.
    let collected = tokio::spawn(async move { images::collect_now(&service).await });
    let plan = collected.await.unwrap_or_else(|error| Err(HttpError::hidden(&error)))?;
    Ok(Response::ok(&plan))
}
