//! How entries look in the engine: a small header that spares decoding the object at start, then its JSON.
//!
//! Keys are `o` + collection + NUL + namespace + NUL + name (no part can hold a NUL); store-wide facts are `m` + name.

use crate::entry::{Entry, Facets, ObjectKey, ResourceId};

/// The highest revision that may have been given out; a restart goes on above it.
pub(crate) const CEILING_KEY: &[u8] = b"mceiling";
const FORMAT: u8 = 1;

pub(crate) fn object_key(resource: &ResourceId, key: &ObjectKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 + resource.as_str().len() + key.namespace.len() + key.name.len());
    out.push(b'o');
    out.extend_from_slice(resource.as_str().as_bytes());
    out.push(0);
    out.extend_from_slice(key.namespace.as_bytes());
    out.push(0);
    out.extend_from_slice(key.name.as_bytes());
    out
}

/// The parts of an object's key; none for a store-wide fact.
pub(crate) fn parse_key(bytes: &[u8]) -> Option<(ResourceId, ObjectKey)> {
    let text = std::str::from_utf8(bytes.strip_prefix(b"o")?).ok()?;
    let mut parts = text.splitn(3, '\0');
    let (resource, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some((ResourceId::from_text(resource), ObjectKey::new(namespace, name)))
}

pub(crate) fn encode(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + entry.bytes.len());
    out.push(FORMAT);
    out.extend_from_slice(&entry.revision.to_le_bytes());
    for list in [&entry.facets.labels, &entry.facets.fields] {
        out.extend_from_slice(&(list.len() as u32).to_le_bytes());
        for (key, value) in list {
            for text in [key, value] {
                out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    out.extend_from_slice(&entry.bytes);
    out
}

/// Reads what [`encode`] wrote; none when the bytes are something else.
pub(crate) fn decode(key: ObjectKey, record: &[u8]) -> Option<Entry> {
    let mut rest = record.strip_prefix(&[FORMAT])?;
    let revision = u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
    let labels = pairs(&mut rest)?;
    let fields = pairs(&mut rest)?;
    let bytes = bytes::Bytes::copy_from_slice(rest);
    Some(Entry { key, revision, bytes, facets: Facets { labels, fields } })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(count)?;
    *rest = tail;
    Some(head)
}

fn number(rest: &mut &[u8]) -> Option<usize> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?) as usize)
}

fn pairs(rest: &mut &[u8]) -> Option<Vec<(Box<str>, Box<str>)>> {
    let count = number(rest)?;
    let mut text = || {
        let length = number(rest)?;
        Some(Box::from(std::str::from_utf8(take(rest, length)?).ok()?))
    };
    let mut out = Vec::new();
    for _ in 0..count {
        out.push((text()?, text()?));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_went_in_and_torn_ones_are_refused() {
        let key = ObjectKey::new("default", "web");
        let facets = Facets {
            labels: vec![("app".into(), "web".into()), ("tier".into(), "".into())],
            fields: vec![("spec.nodeName".into(), "n1".into())],
        };
        let entry = Entry { key: key.clone(), revision: 7, bytes: "{\"a\":1}".into(), facets };
        let record = encode(&entry);
        assert_eq!(decode(key.clone(), &record), Some(entry));
        for cut in 0..record.len() - 7 {
            assert_eq!(decode(key.clone(), &record[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn keys_sort_like_lists() {
        let resource = ResourceId::new("apps", "deployments");
        let keys = [("", "z"), ("a", "b"), ("a", "c"), ("ab", "a")].map(|(ns, name)| ObjectKey::new(ns, name));
        let encoded: Vec<_> = keys.iter().map(|key| object_key(&resource, key)).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(parse_key(bytes), Some((resource.clone(), key.clone())));
        }
        assert_eq!(parse_key(CEILING_KEY), None);
    }
}
