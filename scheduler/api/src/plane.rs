//! What an agent asks of the control plane beside its assignment: addresses for containers that belong to no stack.

use futures_util::future::BoxFuture;

use crate::control::{AddressRequest, AddressResponse};
use crate::error::ErrorDetail;

/// The control plane as its own node's agent sees it.
pub trait ControlPlane: Send + Sync + 'static {
    /// An address on a network for a container of no stack. The network `bridge` is made when it is not there yet.
    fn reserve_address(
        &self,
        network: String,
        request: AddressRequest,
    ) -> BoxFuture<'_, Result<AddressResponse, ErrorDetail>>;

    /// Gives the addresses of this holder back.
    fn release_address(&self, network: String, holder: String) -> BoxFuture<'_, Result<(), ErrorDetail>>;
}
