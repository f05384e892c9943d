//! What an agent asks of the control plane beside its assignment: addresses for containers that belong to no stack, and images that
//! other nodes have.

use futures_util::future::BoxFuture;

use crate::control::{AddressRequest, AddressResponse};
use crate::error::ErrorDetail;
use crate::image::{BlobStream, Holder, Holders, ImageOffer};

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

    /// The id of the image that got this name last on another node; `None` where there is none, or this node may not ask for it.
    fn image_named(&self, name: String) -> BoxFuture<'_, Option<String>>;

    /// Who else has the image with this id.
    fn image_holders(&self, image: String) -> BoxFuture<'_, Result<Holders, ErrorDetail>>;

    /// What the image consists of, as this holder says.
    fn image_offer(&self, image: String, from: Holder) -> BoxFuture<'_, Result<ImageOffer, ErrorDetail>>;

    /// The bytes of one of its blobs from this offset on, from this holder.
    fn image_blob(
        &self,
        image: String,
        digest: String,
        offset: u64,
        from: Holder,
    ) -> BoxFuture<'_, Result<BlobStream, ErrorDetail>>;
}
