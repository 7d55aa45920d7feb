//! The certificate that the API server shows: looked at whenever somebody connects, and made again before it ends. A
//! server that runs for years, or whose clock was put right by years, needs no restart.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;

use crate::authority::{Authority, AuthorityError, RENEW_BEFORE};
use crate::identity::Identity;

/// What connections are shown.
pub(crate) struct Served {
    current: Mutex<Current>,
    renewed: Arc<Notify>,
}

struct Current {
    authority: Authority,
    key: Arc<CertifiedKey>,
}

impl Served {
    /// Shows the certificate of `authority`; says through `renewed` when it made new ones.
    pub(crate) fn new(authority: Authority, renewed: Arc<Notify>) -> Result<Self, AuthorityError> {
        let key = certified(authority.server())?;
        Ok(Self { current: Mutex::new(Current { authority, key }), renewed })
    }

    fn shown(&self) -> Arc<CertifiedKey> {
        let mut current = self.current.lock();
        if is_due(current.authority.ends(), current.authority.now()) || !current.authority.has_passing_names() {
            match current.authority.reopen().and_then(|authority| Ok((certified(authority.server())?, authority))) {
                Ok((key, authority)) => {
                    *current = Current { authority, key };
                    self.renewed.notify_one();
                }
                // The old one is better than none, and the next connection tries again.
                Err(error) => tracing::warn!(%error, "cannot renew the certificate of the API server"),
            }
        }
        current.key.clone()
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.shown())
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Served")
    }
}

/// Whether a certificate that ends at `ends` is to be made again.
fn is_due(ends: Timestamp, now: Timestamp) -> bool {
    ends.duration_since(now) <= RENEW_BEFORE
}

fn certified(server: &Identity) -> Result<Arc<CertifiedKey>, AuthorityError> {
    let key = rustls::crypto::ring::sign::any_supported_type(&server.private_key());
    let key = key.map_err(|error| AuthorityError::Tls(error.to_string()))?;
    Ok(Arc::new(CertifiedKey::new(vec![server.certificate().clone()], key)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use futures::FutureExt;
    use kedge_world::sim::{SimClock, SimDisk, SimRandom};
    use kedge_world::{RealNet, World};

    use super::*;
    use crate::authority::Names;

    #[test]
    fn an_address_that_comes_later_is_in_the_next_certificate_and_one_that_left_is_not_kept() {
        let clock = Arc::new(SimClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let random = Arc::new(SimRandom::seeded(1));
        let disk = Arc::new(SimDisk::new(random.clone()));
        let world = World { clock, random, disk, net: Arc::new(RealNet) };
        let authority = Authority::open(&world, Path::new("/data/tls"), &Names(vec!["box.example".into()])).unwrap();
        let renewed = Arc::new(Notify::new());
        let served = Served::new(authority.reopen().unwrap(), renewed.clone()).unwrap();
        let admin = authority.kubeconfig("https://127.0.0.1");
        for (now, before) in [("192.0.2.7", "192.0.2.6"), ("192.0.2.8", "192.0.2.7")] {
            authority.also_serve_as(Names(vec![now.into()]));
            let shown = served.shown();
            assert!(renewed.notified().now_or_never().is_some());
            let names = authority.reopen().unwrap().server().names();
            assert!(names.contains(&now.into()) && names.contains(&"box.example".into()), "{names:?}");
            assert!(!names.contains(&before.into()), "{names:?}");
            assert!(Arc::ptr_eq(&shown, &served.shown()), "made once");
        }
        assert_eq!(authority.reopen().unwrap().kubeconfig("https://127.0.0.1"), admin, "nobody else's key changes");
    }

    #[test]
    fn a_server_that_runs_for_years_always_shows_a_certificate_that_lasts() {
        let clock = Arc::new(SimClock::at("2026-05-01T00:00:00Z".parse().unwrap()));
        let random = Arc::new(SimRandom::seeded(1));
        let disk = Arc::new(SimDisk::new(random.clone()));
        let world = World { clock: clock.clone(), random, disk, net: Arc::new(RealNet) };
        let open = || Authority::open(&world, Path::new("/data/tls"), &Names::default()).unwrap();
        let renewed = Arc::new(Notify::new());
        let served = Served::new(open(), renewed.clone()).unwrap();
        let first = served.shown();
        assert!(Arc::ptr_eq(&first, &served.shown()) && renewed.notified().now_or_never().is_none());
        for days in [300, 1000, 365] {
            let before = (served.shown(), open().kubeconfig("https://127.0.0.1"));
            clock.advance(Duration::from_secs(days * 86_400));
            let shown = served.shown();
            assert!(!Arc::ptr_eq(&before.0, &shown), "after {days} more days");
            assert!(renewed.notified().now_or_never().is_some());
            let now = open();
            assert_eq!(shown.cert[0], *now.server().certificate(), "what is shown is what the disk holds");
            assert!(!is_due(now.ends(), now.now()));
            assert_ne!(now.kubeconfig("https://127.0.0.1"), before.1);
        }
    }
}
