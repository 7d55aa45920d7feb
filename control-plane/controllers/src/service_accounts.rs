//! ServiceAccount and root CA: every namespace has a `default` account and the certificate to check the API with.
//! (`pkg/controller/serviceaccount`, `pkg/controller/certificates/rootcacertpublisher`.)

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kube::ResourceExt;

use crate::write::{self, is};

const ACCOUNT: &str = "default";
const CONFIG: &str = "kube-root-ca.crt";
const NOTE: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service \
     IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

pub(crate) struct Controller {
    root_ca: String,
    /// Who writes the certificate: upstream has another role for it.
    publisher: Context,
}

impl Controller {
    pub(crate) fn new(root_ca: &str, publisher: Context) -> Self {
        Self { root_ca: root_ca.to_owned(), publisher }
    }
}

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "serviceaccount-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Namespace>(trigger);
        context.watch::<ServiceAccount>(trigger, |change| match change.latest() {
            account if account.name_any() == ACCOUNT => vec![Key::new("", &account.namespace().unwrap_or_default())],
            _ => Vec::new(),
        });
        context.watch::<ConfigMap>(trigger, |change| match change.latest() {
            config if config.name_any() == CONFIG => vec![Key::new("", &config.namespace().unwrap_or_default())],
            _ => Vec::new(),
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let Some(namespace) = context.informers.of::<Namespace>().get(key) else { return Ok(Next::Change) };
        if namespace.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let namespace = &*key.name;
        if context.informers.of::<ServiceAccount>().get(&Key::new(namespace, ACCOUNT)).is_none() {
            let account = ServiceAccount { metadata: named(ACCOUNT, namespace), ..ServiceAccount::default() };
            created(write::create(context, namespace, &account).await)?;
        }
        let data = BTreeMap::from([("ca.crt".to_owned(), self.root_ca.clone())]);
        match context.informers.of::<ConfigMap>().get(&Key::new(namespace, CONFIG)) {
            None => {
                let mut metadata = named(CONFIG, namespace);
                metadata.annotations = Some(BTreeMap::from([(NOTE.0.to_owned(), NOTE.1.to_owned())]));
                let config = ConfigMap { metadata, data: Some(data), ..ConfigMap::default() };
                created(write::create(&self.publisher, namespace, &config).await)?;
            }
            Some(config) if config.data.as_ref() != Some(&data) => {
                // What else somebody put there goes away: the bundle must be exactly this.
                let config = ConfigMap { data: Some(data), binary_data: None, ..(*config).clone() };
                write::replace(&self.publisher, &config).await?;
            }
            Some(_) => {}
        }
        Ok(Next::Change)
    }
}

fn named(name: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() }
}

/// That somebody else created it first, or that the namespace is going away, is as good.
fn created<K>(result: kube::Result<K>) -> kube::Result<()> {
    match result {
        Err(error) if !is(&error, 409) && !is(&error, 404) && !is(&error, 403) => Err(error),
        _ => Ok(()),
    }
}
