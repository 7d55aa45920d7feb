//! Frames of the link as messages, and back. What makes no frame is refused here, so that the link sees only frames.

use std::sync::Arc;

use bytes::Bytes;
use kedge_link::{Change, Epoch, FromHub, FromSite, Key, Listed, Position};

use crate::proto;

/// A message that is no frame.
#[derive(Debug, thiserror::Error)]
#[error("a message without {0}")]
pub struct Malformed(&'static str);

/// A site's frame as a message.
pub fn to_hub(frame: FromSite) -> proto::FromSite {
    use proto::from_site::Frame;
    let frame = match frame {
        FromSite::Hello { protocol, position, whole, boot } => {
            Frame::Hello(proto::Hello { protocol, position: Some(position_out(position)), whole, boot })
        }
        FromSite::Ack(position) => Frame::Ack(position_out(position)),
        FromSite::Want(keys) => Frame::Want(proto::Want { keys: keys.iter().map(ToString::to_string).collect() }),
        FromSite::Reports { reset, from, to, reports } => {
            let report = |(key, body): (Key, Option<Arc<str>>)| proto::Report {
                key: key.to_string(),
                body: body.map(|body| body.to_string()),
            };
            Frame::Reports(proto::Reports { reset, from, to, reports: reports.into_iter().map(report).collect() })
        }
        FromSite::Beat { wall_ms } => Frame::Beat(proto::Beat { wall_ms }),
    };
    proto::FromSite { frame: Some(frame) }
}

/// A message of a site as a frame.
pub fn from_site(message: proto::FromSite) -> Result<FromSite, Malformed> {
    use proto::from_site::Frame;
    Ok(match message.frame.ok_or(Malformed("a frame"))? {
        Frame::Hello(proto::Hello { protocol, position, whole, boot }) => {
            FromSite::Hello { protocol, position: position_in(position)?, whole, boot }
        }
        Frame::Ack(position) => FromSite::Ack(position_in(Some(position))?),
        Frame::Want(want) => FromSite::Want(want.keys.iter().map(|key| Key::new(key)).collect()),
        Frame::Reports(proto::Reports { reset, from, to, reports }) => {
            let report = |report: proto::Report| (Key::new(&report.key), report.body.map(Arc::from));
            FromSite::Reports { reset, from, to, reports: reports.into_iter().map(report).collect() }
        }
        Frame::Beat(beat) => FromSite::Beat { wall_ms: beat.wall_ms },
    })
}

/// A hub's frame as a message.
pub fn to_site(frame: FromHub) -> proto::FromHub {
    use proto::from_hub::Frame;
    let frame = match frame {
        FromHub::Welcome { protocol, reports_seen } => Frame::Welcome(proto::Welcome { protocol, reports_seen }),
        FromHub::Delta { from, to, changes } => Frame::Delta(proto::Delta {
            from: Some(position_out(from)),
            to: Some(position_out(to)),
            changes: changes_out(changes),
        }),
        FromHub::Inventory { at, history, trusted, entries, last } => Frame::Inventory(proto::Inventory {
            at: Some(position_out(at)),
            history: history.iter().map(|run| proto::Epoch { epoch: run.epoch, last_seq: run.last_seq }).collect(),
            trusted,
            entries: entries.into_iter().map(listed_out).collect(),
            last,
        }),
        FromHub::Items { epoch, items } => Frame::Items(proto::Items { epoch, items: changes_out(items) }),
        FromHub::ReportAck(seq) => Frame::ReportAck(seq),
    };
    proto::FromHub { frame: Some(frame) }
}

/// A message of a hub as a frame; none when it is not one of the link.
pub fn from_hub(message: proto::FromHub) -> Result<Option<FromHub>, Malformed> {
    use proto::from_hub::Frame;
    Ok(Some(match message.frame.ok_or(Malformed("a frame"))? {
        Frame::Welcome(proto::Welcome { protocol, reports_seen }) => FromHub::Welcome { protocol, reports_seen },
        Frame::Delta(proto::Delta { from, to, changes }) => {
            FromHub::Delta { from: position_in(from)?, to: position_in(to)?, changes: changes_in(changes) }
        }
        Frame::Inventory(proto::Inventory { at, history, trusted, entries, last }) => FromHub::Inventory {
            at: position_in(at)?,
            history: history.iter().map(|run| Epoch { epoch: run.epoch, last_seq: run.last_seq }).collect(),
            trusted,
            entries: entries.into_iter().map(listed_in).collect::<Result<_, _>>()?,
            last,
        },
        Frame::Items(proto::Items { epoch, items }) => FromHub::Items { epoch, items: changes_in(items) },
        Frame::ReportAck(seq) => FromHub::ReportAck(seq),
        Frame::RenewalDue(_) => return Ok(None),
    }))
}

fn position_out(position: Position) -> proto::Position {
    proto::Position { epoch: position.epoch, seq: position.seq }
}

fn position_in(position: Option<proto::Position>) -> Result<Position, Malformed> {
    let position = position.ok_or(Malformed("a position"))?;
    Ok(Position { epoch: position.epoch, seq: position.seq })
}

fn changes_out(changes: Vec<Change>) -> Vec<proto::Change> {
    let change = |Change { key, seq, body }| proto::Change {
        key: Key::to_string(&key),
        seq,
        body: body.map(|body: Arc<str>| body.to_string()),
    };
    changes.into_iter().map(change).collect()
}

fn changes_in(changes: Vec<proto::Change>) -> Vec<Change> {
    let change = |proto::Change { key, seq, body }| Change { key: Key::new(&key), seq, body: body.map(Arc::from) };
    changes.into_iter().map(change).collect()
}

fn listed_out(Listed { key, seq, hash }: Listed) -> proto::Listed {
    proto::Listed { key: key.to_string(), seq, hash: hash.map(|hash| Bytes::copy_from_slice(&hash)) }
}

fn listed_in(proto::Listed { key, seq, hash }: proto::Listed) -> Result<Listed, Malformed> {
    let hash = hash.map(|hash| <[u8; 32]>::try_from(&*hash).map_err(|_| Malformed("a whole hash"))).transpose()?;
    Ok(Listed { key: Key::new(&key), seq, hash })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let position = Position { epoch: u64::MAX, seq: 7 };
        let key = Key::new("Model/default/m");
        let change = || Change { key: key.clone(), seq: 3, body: Some("{}".into()) };
        let gone = || Change { key: key.clone(), seq: 4, body: None };
        for frame in [
            FromSite::Hello { protocol: 1, position, whole: true, boot: 9 },
            FromSite::Ack(position),
            FromSite::Want(vec![key.clone()]),
            FromSite::Reports { reset: true, from: 1, to: 2, reports: vec![(key.clone(), None)] },
            FromSite::Beat { wall_ms: -5 },
        ] {
            assert_eq!(from_site(to_hub(frame.clone())).unwrap(), frame);
        }
        for frame in [
            FromHub::Welcome { protocol: 1, reports_seen: 4 },
            FromHub::Delta { from: Position::default(), to: position, changes: vec![change(), gone()] },
            FromHub::Inventory {
                at: position,
                history: vec![Epoch { epoch: 1, last_seq: 2 }],
                trusted: true,
                entries: vec![
                    Listed { key: key.clone(), seq: 1, hash: Some([7; 32]) },
                    Listed { key: key.clone(), seq: 2, hash: None },
                ],
                last: true,
            },
            FromHub::Items { epoch: 5, items: vec![change()] },
            FromHub::ReportAck(6),
        ] {
            assert_eq!(from_hub(to_site(frame.clone())).unwrap(), Some(frame));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            use prost::Message;
            let _ = proto::FromSite::decode(&*bytes).map(from_site);
            let _ = proto::FromHub::decode(&*bytes).map(from_hub);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(from_site(proto::FromSite::default()).is_err());
        let delta = proto::from_hub::Frame::Delta(proto::Delta::default());
        assert!(from_hub(proto::FromHub { frame: Some(delta) }).is_err());
        let listed = proto::Listed { hash: Some(Bytes::from_static(b"short")), ..proto::Listed::default() };
        assert!(listed_in(listed).is_err());
    }
}
