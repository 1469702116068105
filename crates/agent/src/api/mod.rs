//! The APIs that an agent serves on its sockets.

use std::sync::Arc;

use runtime::BoxError;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Serves them until the token is cancelled.
///
/// # Errors
/// A socket cannot be made, or fails.
pub async fn serve(context: Arc<Context>, token: CancellationToken) -> Result<(), BoxError> {
    let _none_yet = context;
    token.cancelled().await;
    Ok(())
}
