//! Writing the status of a `Model`, which two controllers do.

use kedge_client::{Context, Key};
use kedge_own::{Model, ModelStatus};
use kube::api::PostParams;
use kube::{Api, ResourceExt};

/// What became of a write.
pub(crate) enum Written {
    /// The object as it is now; the shared copy shows it.
    Now(Box<Model>),
    /// The object was changed by somebody else, or is gone.
    Behind,
}

/// Replaces the status of `model`, at the revision it carries.
pub(crate) async fn write_status(context: &Context, model: &Model, status: ModelStatus) -> kube::Result<Written> {
    let changed = Model { status: Some(status), ..model.clone() };
    let key = Key::of(model);
    let api: Api<Model> = Api::namespaced(context.informers.client().clone(), &key.namespace);
    match api.replace_status(&model.name_any(), &PostParams::default(), &changed).await {
        Ok(made) => {
            let revision = made.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
            context.informers.of::<Model>().reached(revision).await;
            Ok(Written::Now(Box::new(made)))
        }
        Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => Ok(Written::Behind),
        Err(error) => Err(error),
    }
}
