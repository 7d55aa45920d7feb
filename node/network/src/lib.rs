//! The network of one node: bridge and veth, nftables for Services, cluster DNS.
