//! Forgets UDP connections to backends that are gone, by way of ctnetlink.
//!
//! The kernel's list is read once, each connection that is meant is deleted by its own tuple. Reading and writing
//! messages is pure; [`forget`] is the shell around it.
//! Numbers: `linux/netfilter/nfnetlink.h`, `nfnetlink_conntrack.h`.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use rtnetlink::sys::{Socket, SocketAddr};

use super::endpoints::Backend;
use crate::{Namespace, NetworkError};

const NETLINK_NETFILTER: isize = 12;
const GET: u16 = 0x0101;
const DELETE: u16 = 0x0102;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const UDP: u8 = 17;
/// Flags in an attribute's kind: nested, network order.
const KIND_MASK: u16 = 0x3fff;

/// Which UDP connections to forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doomed {
    /// Translated ones that lead here.
    pub backends: BTreeSet<Backend>,
    /// Ones to these ports that were not translated, because nothing was open when they began.
    pub ports: BTreeSet<u16>,
}

/// Deletes what is meant inside `namespace`; how many there were.
pub async fn forget(namespace: &Namespace, doomed: Doomed) -> Result<usize, NetworkError> {
    if doomed == Doomed::default() {
        return Ok(0);
    }
    let namespace = namespace.clone();
    let task = tokio::task::spawn_blocking(move || namespace.run(|| forget_here(&doomed)));
    let ended = |e| NetworkError::Invalid(format!("the task that forgets connections ended: {e}"));
    let count = task.await.map_err(ended)???;
    tracing::debug!(count, "forgot UDP connections");
    Ok(count)
}

/// The same in the calling thread's namespace.
fn forget_here(meant: &Doomed) -> Result<usize, NetworkError> {
    let fail = |e| NetworkError::kernel("list or delete connections through", Path::new("ctnetlink"), e);
    let mut socket = Socket::new(NETLINK_NETFILTER).map_err(fail)?;
    socket.bind_auto().map_err(fail)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(fail)?;
    socket.send(&message(GET, REQUEST | DUMP, &[]), 0).map_err(fail)?;
    let mut doomed = Vec::new();
    'dump: loop {
        let (bytes, _) = socket.recv_from_full().map_err(fail)?;
        for (kind, body) in messages(&bytes) {
            match kind {
                DONE => break 'dump,
                ERROR => return answer(body).map(|()| 0).map_err(fail),
                _ => doomed.extend(tuple_of(body, meant)),
            }
        }
    }
    for tuple in &doomed {
        socket.send(&message(DELETE, REQUEST | ACK, tuple), 0).map_err(fail)?;
        let (bytes, _) = socket.recv_from_full().map_err(fail)?;
        for (_, body) in messages(&bytes).into_iter().filter(|(kind, _)| *kind == ERROR) {
            match answer(body) {
                // It ended by itself in between.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
                other => other.map_err(fail)?,
            }
        }
    }
    Ok(doomed.len())
}

/// A request about IPv4 connections.
fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).expect("a tuple is small");
    let mut bytes = Vec::with_capacity(20 + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([nix::libc::AF_INET as u8, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// The messages of one datagram: kind and what follows the netlink header.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (number(bytes, 0), bytes.get(4..6)) {
        let length = length as usize;
        let Some(body) = bytes.get(16..length) else { break };
        found.push((u16::from_ne_bytes([kind[0], kind[1]]), body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// What an error message says; zero is success.
fn answer(body: &[u8]) -> io::Result<()> {
    match number(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half an answer")),
    }
}

/// The original tuple, ready to be sent back, of a UDP connection that is meant.
fn tuple_of(body: &[u8], meant: &Doomed) -> Option<Vec<u8>> {
    let all = attributes(body.get(4..)?);
    let original = all.iter().find(|a| a.0 == TUPLE_ORIG)?;
    let (answers, _) = tuple(all.iter().find(|a| a.0 == TUPLE_REPLY)?.1)?;
    let (_, asked) = tuple(original.1)?;
    let meant = if asked == answers { meant.ports.contains(&asked.1) } else { meant.backends.contains(&answers) };
    meant.then(|| original.2.to_vec())
}

/// Source and destination of a UDP tuple.
fn tuple(bytes: &[u8]) -> Option<(Backend, Backend)> {
    let parts = attributes(bytes);
    let nested = |kind: u16| Some(attributes(parts.iter().find(|part| part.0 == kind)?.1));
    let (addresses, transport) = (nested(1)?, nested(2)?);
    let find = |all: &[(u16, &[u8], &[u8])], kind| all.iter().find(|a| a.0 == kind).map(|a| a.1.to_vec());
    if find(&transport, 1)? != [UDP] {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(&addresses, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(<[u8; 2]>::try_from(find(&transport, kind)?).ok()?));
    Some(((address(1)?, port(2)?), (address(2)?, port(3)?)))
}

/// Attributes: kind, content, and the whole with its header and padding.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8], &[u8])> {
    let mut found = Vec::new();
    while let Some(head) = bytes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & KIND_MASK;
        let Some(content) = bytes.get(4..length) else { break };
        let end = length.next_multiple_of(4).min(bytes.len());
        found.push((kind, content, &bytes[..end]));
        bytes = &bytes[end..];
    }
    found
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(4 + content.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn connection(protocol: u8, asked: Backend, answers: Backend) -> Vec<u8> {
        let client = (Ipv4Addr::new(10, 42, 0, 9), 4000);
        let one = |kind, from: Backend, to: Backend| {
            let addresses = [attribute(1, &from.0.octets()), attribute(2, &to.0.octets())].concat();
            let ports =
                [attribute(1, &[protocol]), attribute(2, &from.1.to_be_bytes()), attribute(3, &to.1.to_be_bytes())];
            let parts = [attribute(0x8001, &addresses), attribute(0x8002, &ports.concat())].concat();
            attribute(0x8000 | kind, &parts)
        };
        [vec![2, 0, 0, 0], one(TUPLE_ORIG, client, asked), one(TUPLE_REPLY, answers, client)].concat()
    }

    #[test]
    fn only_translated_udp_connections_to_what_is_gone_are_meant() {
        let (service, gone, here) =
            ((Ipv4Addr::new(10, 43, 0, 1), 53), (Ipv4Addr::new(10, 42, 0, 2), 53), (Ipv4Addr::new(10, 42, 0, 3), 53));
        let lost = Doomed { backends: BTreeSet::from([gone]), ports: BTreeSet::from([5300]) };
        let meant = |body: &[u8]| tuple_of(body, &lost).is_some();
        let (opened, other) = ((Ipv4Addr::new(192, 0, 2, 1), 5300), (Ipv4Addr::new(192, 0, 2, 1), 5301));
        assert!(meant(&connection(17, opened, opened)), "from before the port was open");
        assert!(!meant(&connection(17, opened, here)), "already translated");
        assert!(!meant(&connection(17, other, other)));
        assert!(meant(&connection(17, service, gone)));
        assert!(!meant(&connection(6, service, gone)), "TCP ends by itself");
        assert!(!meant(&connection(17, service, here)));
        assert!(!meant(&connection(17, gone, gone)), "asked directly, not through a Service");
        let body = connection(17, service, gone);
        let sent_back = tuple_of(&body, &lost).unwrap();
        assert_eq!(tuple(attributes(&sent_back)[0].1).unwrap().1, service);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for (_, body) in messages(&bytes) {
                let _ = answer(body);
            }
            let _ = tuple_of(&bytes, &Doomed::default());
        }
    }
}
