//! Loopback addresses for one test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// Held to say that a network is taken: the discard port of its last address.
const CLAIM: (u8, u16) = (254, 9);
/// 127.0.0.0/24 belongs to the machine and to `skiff quickstart`.
const FIRST: u32 = 256;
const LAST: u32 = 0xff_fe00 >> 8;

/// 254 addresses, 127.x.y.1 to 127.x.y.254, that no other test of any process uses while this lives.
#[derive(Debug)]
pub struct Network {
    prefix: [u8; 3],
    _claim: TcpListener,
}

impl Network {
    /// Takes a free one.
    ///
    /// # Panics
    /// When there is none.
    pub fn claim() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..LAST {
            // Spread by process id, so that processes seldom meet.
            let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(process::id().wrapping_mul(97));
            let [_, _, x, y] = (FIRST + number % (LAST - FIRST)).to_be_bytes();
            if let Ok(claim) = TcpListener::bind((Ipv4Addr::new(127, x, y, CLAIM.0), CLAIM.1)) {
                return Self { prefix: [127, x, y], _claim: claim };
            }
        }
        panic!("no free loopback network");
    }

    /// Takes a free one whose prefix is as long as `127.0.0.`: binary data with addresses in it can be moved there.
    ///
    /// # Panics
    /// When there is none.
    pub fn claim_short() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let one_digit = || 1..=9_u8;
        let prefixes: Vec<_> = one_digit().flat_map(|x| one_digit().map(move |y| [127, x, y])).collect();
        // Not one that has just been given back: its ports may take a moment to close.
        let first = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(process::id() as usize * 7) % prefixes.len();
        let prefixes = prefixes[first..].iter().chain(&prefixes[..first]).copied();
        let mut free = prefixes.filter_map(|[a, x, y]| {
            let claim = TcpListener::bind((Ipv4Addr::new(a, x, y, CLAIM.0), CLAIM.1)).ok()?;
            Some(Self { prefix: [a, x, y], _claim: claim })
        });
        free.next().unwrap_or_else(|| panic!("no free loopback network with a short prefix"))
    }

    /// The address with this last byte.
    pub fn ip(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, last)
    }

    /// A port of the address with this last byte.
    pub fn at(&self, last: u8, port: u16) -> SocketAddr {
        (self.ip(last), port).into()
    }

    /// The text with `127.0.0.` replaced by this network's first three bytes.
    pub fn localise(&self, text: &str) -> String {
        let [a, b, c] = self.prefix;
        text.replace("127.0.0.", &format!("{a}.{b}.{c}."))
    }

    /// The same for binary data; only for a network of [`Network::claim_short`].
    pub fn localise_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        const PREFIX: &[u8] = b"127.0.0.";
        let [a, b, c] = self.prefix;
        let ours = format!("{a}.{b}.{c}.");
        assert_eq!(ours.len(), PREFIX.len(), "the network was not claimed short");
        let mut moved = bytes.to_vec();
        for start in 0..moved.len().saturating_sub(PREFIX.len()) {
            if moved[start..].starts_with(PREFIX) {
                moved[start..start + PREFIX.len()].copy_from_slice(ours.as_bytes());
            }
        }
        moved
    }
}
