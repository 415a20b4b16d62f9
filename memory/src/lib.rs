//! The allocator, and giving memory back to the system.
//!
//! A sidecar is measured by what it holds while nothing happens. Two things are held for nothing then: what the allocator keeps
//! of memory that a large push took for a moment, and the pages of the program that only starting needed. [`give_back`] lets go of
//! both; what is needed again is read from the page cache again.

#[cfg(target_os = "linux")]
mod mappings;

/// The allocator of every program of skiff: musl's serialises threads, and jemalloc built for 4 KiB pages aborts on the 16 KiB
/// pages of a Raspberry Pi 5.
pub type Allocator = mimalloc::MiMalloc;

/// The value for `#[global_allocator]`.
pub const ALLOCATOR: Allocator = mimalloc::MiMalloc;

/// Gives back what is held for nothing. Costs about a millisecond, and as many page faults later as the program touches pages; to be
/// called when it has become quiet, by the thread whose memory it is about.
pub fn give_back() {
    // SAFETY: frees what no allocation uses; may be called at any time from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
    #[cfg(target_os = "linux")]
    mappings::give_back();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static GLOBAL: Allocator = ALLOCATOR;

    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_was_freed_and_what_is_not_used_goes_and_what_is_used_stays() {
        let kept: Vec<Box<[u8; 64]>> = (0..1000).map(|number| Box::new([number as u8; 64])).collect();
        drop((0..400_000).map(|number| Box::new([number as u8; 64])).collect::<Vec<_>>());
        let before = resident();
        give_back();
        let after = resident();
        assert!(after < before, "{before} KiB became {after}");
        assert!(kept.iter().enumerate().all(|(number, bytes)| bytes[63] == number as u8));
        give_back();
    }
}
