//! Which pod has which address of the node's pod CIDR.
//!
//! Always holds: an address belongs to at most one pod, a pod has at most one. The first address is the bridge's, the
//! first and last of the range are never given. A freed address comes back last, so that what still talks to the pod
//! that left does not reach its successor.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::{Ipv4Cidr, NetworkError};

/// The leases of one node.
#[derive(Clone, Debug)]
pub struct AddressPlan {
    cidr: Ipv4Cidr,
    by_pod: BTreeMap<String, Ipv4Addr>,
    by_address: BTreeMap<Ipv4Addr, String>,
    /// Where the next search begins, as an offset.
    next: u64,
}

impl AddressPlan {
    /// Nothing leased yet. A range that holds no pod, or more than a node can want, is refused.
    pub fn new(cidr: Ipv4Cidr) -> Result<Self, NetworkError> {
        if !(20..=29).contains(&cidr.prefix()) {
            let why = "a node's pod CIDR must have between 20 and 29 bits of prefix";
            return Err(NetworkError::Invalid(format!("{cidr}: {why}")));
        }
        Ok(Self { cidr, by_pod: BTreeMap::new(), by_address: BTreeMap::new(), next: 2 })
    }

    /// The range the addresses come from.
    pub fn cidr(&self) -> Ipv4Cidr {
        self.cidr
    }

    /// The bridge's own address, the pods' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        self.cidr.nth(1).expect("a range of 29 bits or fewer has a second address")
    }

    /// The address of a pod.
    pub fn get(&self, uid: &str) -> Option<Ipv4Addr> {
        self.by_pod.get(uid).copied()
    }

    /// The pod's address, a new one if it has none.
    pub fn allocate(&mut self, uid: &str) -> Result<Ipv4Addr, NetworkError> {
        if let Some(address) = self.get(uid) {
            return Ok(address);
        }
        let usable = self.cidr.size() - 3;
        let offsets = (0..usable).map(|step| 2 + (self.next - 2 + step) % usable);
        let free = offsets
            .filter_map(|offset| Some((offset, self.cidr.nth(offset)?)))
            .find(|(_, address)| !self.by_address.contains_key(address));
        let (offset, address) = free.ok_or(NetworkError::AddressesExhausted(self.by_address.len()))?;
        self.next = self.after(offset);
        self.insert(address, uid)?;
        Ok(address)
    }

    /// Notes a lease read back from disk.
    pub fn hold(&mut self, address: Ipv4Addr, uid: &str) -> Result<(), NetworkError> {
        self.insert(address, uid)?;
        if let Some(offset) = self.cidr.offset(address) {
            self.next = self.next.max(self.after(u64::from(offset)));
        }
        Ok(())
    }

    fn insert(&mut self, address: Ipv4Addr, uid: &str) -> Result<(), NetworkError> {
        if let Some(first) = self.by_pod.get(uid).filter(|first| **first != address) {
            return Err(NetworkError::TwoLeases { uid: uid.to_owned(), first: *first, second: address });
        }
        self.by_pod.insert(uid.to_owned(), address);
        self.by_address.insert(address, uid.to_owned());
        Ok(())
    }

    /// The offset to look at after this one; past the end comes the first that may be given.
    fn after(&self, offset: u64) -> u64 {
        if (1..self.cidr.size() - 2).contains(&offset) { offset + 1 } else { 2 }
    }

    /// Ends a pod's lease; what it was.
    pub fn release(&mut self, uid: &str) -> Option<Ipv4Addr> {
        let address = self.by_pod.remove(uid)?;
        self.by_address.remove(&address);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(cidr: &str) -> AddressPlan {
        AddressPlan::new(cidr.parse().unwrap()).unwrap()
    }

    #[test]
    fn addresses_are_given_in_turn_and_come_back_last() {
        let mut plan = plan("10.42.0.0/29");
        let mut give = |uid: &str| plan.allocate(uid).map(|address| address.octets()[3]).ok();
        let given = ["a", "b", "a", "c", "d", "e"].map(&mut give);
        assert_eq!(given, [Some(2), Some(3), Some(2), Some(4), Some(5), Some(6)]);
        assert_eq!(give("f"), None);
        assert_eq!(plan.release("c").unwrap().octets()[3], 4);
        assert_eq!(plan.release("c"), None);
        assert_eq!(plan.allocate("f").unwrap().octets()[3], 4);
        plan.release("a");
        plan.release("b");
        assert_eq!(plan.allocate("g").unwrap().octets()[3], 2);
        plan.release("g");
        assert_eq!(plan.allocate("h").unwrap().octets()[3], 3, "the one just freed comes last");
    }

    #[test]
    fn ranges_too_small_or_too_large_are_refused() {
        for bad in ["10.42.0.0/16", "10.42.0.0/30", "10.42.0.1/32"] {
            assert!(AddressPlan::new(bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_with_two_leases_is_told() {
        let mut plan = plan("10.42.0.0/24");
        plan.hold("10.42.0.9".parse().unwrap(), "a").unwrap();
        assert!(plan.hold("10.42.0.10".parse().unwrap(), "a").is_err());
    }

    proptest! {
        #[test]
        fn no_address_is_ever_held_twice(steps in proptest::collection::vec((0u8..2, 0u8..12), 0..200)) {
            let mut plan = plan("10.42.0.0/28");
            for (what, pod) in steps {
                let uid = format!("pod{pod}");
                if what == 0 {
                    let address = plan.allocate(&uid).unwrap();
                    let offset = plan.cidr().offset(address).unwrap();
                    prop_assert!((2..=14).contains(&offset));
                } else {
                    plan.release(&uid);
                }
                let mut held: Vec<_> = plan.by_pod.values().collect();
                held.sort();
                held.dedup();
                prop_assert_eq!(held.len(), plan.by_pod.len());
                prop_assert_eq!(plan.by_address.len(), plan.by_pod.len());
            }
        }
    }
}
