//! What to do about one model at a site: a pure comparison of what the hub assigned with what the cluster has.

use std::collections::BTreeMap;

use kedge_own::{HubSource, INCOMING_DIGEST, Model, ModelSpec, Source};
use kedge_wire::Assignment;
use kube::ResourceExt;

/// The label of every Model that the sync owns.
pub(crate) const FROM_HUB: &str = "kedge.dev/from-hub";
/// Contents that are active: written so that the controller of Model looks again.
pub(crate) const ACTIVE_DIGEST: &str = "kedge.dev/active-digest";

/// What the site is to do next about a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing to do, nothing to say.
    Nothing,
    /// The object is the sync's and nothing is assigned any more.
    Delete,
    /// The cluster has a Model of this name that somebody else made.
    Foreign,
    /// There is no object yet.
    Create(Box<Model>),
    /// Contents are to come that the object does not name yet; the old ones stay meanwhile.
    Announce,
    /// The contents are not here.
    Pull,
    /// The contents are here; the object must name them, and say so.
    Point,
    /// Everything is as it should be; the model's own status tells the rest.
    Settled,
}

/// Decides. `active`: the assigned contents are complete and in their place.
pub(crate) fn plan(assigned: Option<&Assignment>, object: Option<&Model>, active: bool) -> Step {
    let ours = |model: &&Model| model.labels().contains_key(FROM_HUB);
    let (assigned, object) = match (assigned, object) {
        (None, Some(object)) if ours(&object) && object.metadata.deletion_timestamp.is_none() => return Step::Delete,
        (None, _) => return Step::Nothing,
        (Some(assigned), None) => return Step::Create(Box::new(new_model(assigned))),
        (Some(assigned), Some(object)) => (assigned, object),
    };
    if !ours(&object) {
        return Step::Foreign;
    }
    if object.metadata.deletion_timestamp.is_some() {
        // It is made again once it is gone.
        return Step::Nothing;
    }
    let names = |annotation: &str| object.annotations().get(annotation) == Some(&assigned.digest);
    let named = object.spec.digest.as_ref() == Some(&assigned.digest) || names(INCOMING_DIGEST);
    if !active {
        return if named { Step::Pull } else { Step::Announce };
    }
    if object.spec == spec(assigned) && names(ACTIVE_DIGEST) && !object.annotations().contains_key(INCOMING_DIGEST) {
        return Step::Settled;
    }
    Step::Point
}

/// What the object asks for.
pub(crate) fn spec(assigned: &Assignment) -> ModelSpec {
    let source = Source::Hub(HubSource { uid: assigned.uid.clone() });
    ModelSpec { source, digest: Some(assigned.digest.clone()), sites: None }
}

fn new_model(assigned: &Assignment) -> Model {
    let mut model = Model::new(&assigned.name, spec(assigned));
    model.metadata.namespace = Some(assigned.namespace.clone());
    model.metadata.labels = Some(BTreeMap::from([(FROM_HUB.to_owned(), "true".to_owned())]));
    model
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(digest: &str) -> Assignment {
        Assignment {
            site: "shop-1".into(),
            namespace: "default".into(),
            name: "m".into(),
            uid: "u".into(),
            digest: digest.into(),
            bytes: 5,
        }
    }

    fn object(digest: &str, annotations: &[(&str, &str)]) -> Model {
        let mut model = new_model(&assigned(digest));
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        model.metadata.annotations = Some(annotations.collect());
        model
    }

    #[test]
    fn a_model_comes_is_replaced_and_goes() {
        let (a, b) = (assigned("a"), assigned("b"));
        let foreign = Model::new("m", ModelSpec::default());
        let cases = [
            ("nothing at all", None, None, false, Step::Nothing),
            ("new", Some(&a), None, false, Step::Create(Box::new(new_model(&a)))),
            ("named, not here", Some(&a), Some(object("a", &[])), false, Step::Pull),
            ("here", Some(&a), Some(object("a", &[])), true, Step::Point),
            ("here and said", Some(&a), Some(object("a", &[(ACTIVE_DIGEST, "a")])), true, Step::Settled),
            ("another one", Some(&b), Some(object("a", &[(ACTIVE_DIGEST, "a")])), false, Step::Announce),
            (
                "announced: the old one stays named",
                Some(&b),
                Some(object("a", &[(ACTIVE_DIGEST, "a"), (INCOMING_DIGEST, "b")])),
                false,
                Step::Pull,
            ),
            (
                "the other one is here",
                Some(&b),
                Some(object("a", &[(ACTIVE_DIGEST, "a"), (INCOMING_DIGEST, "b")])),
                true,
                Step::Point,
            ),
            ("no more", None, Some(object("a", &[])), true, Step::Delete),
            ("somebody's own", Some(&a), Some(foreign.clone()), false, Step::Foreign),
            ("somebody's own stays", None, Some(foreign), false, Step::Nothing),
        ];
        for (name, assigned, object, active, expected) in cases {
            assert_eq!(plan(assigned, object.as_ref(), active), expected, "{name}");
        }
    }
}
