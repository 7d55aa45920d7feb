//! Statuses of components, computed when asked for. (`pkg/registry/core/componentstatus`; `printComponentStatus`.)

use serde_json::Value;

use super::Column;
use super::fill::text;
use super::plain::{PLAIN, Plain};
use crate::object;

pub(super) static COMPONENT_STATUS: Plain = Plain {
    deprecated: Some("deprecated in v1.19+"),
    whole_table: true,
    columns: &[Column::text("Name"), Column::text("Status"), Column::text("Message"), Column::text("Error")],
    row: |status, _| {
        let healthy = object::items(status, "conditions").find(|condition| condition["type"] == "Healthy");
        let word = match healthy {
            None => "Unknown",
            Some(condition) if condition["status"] == "True" => "Healthy",
            Some(_) => "Unhealthy",
        };
        let of = |key: &str| healthy.map_or("", |condition| text(&condition[key])).to_owned();
        [object::name(status).to_owned(), word.to_owned(), of("message"), of("error")].map(Value::from).to_vec()
    },
    ..PLAIN
};
