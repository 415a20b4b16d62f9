//! Counting the messages of a gRPC stream: each is a flag, a length of four bytes and so many bytes.

/// Counts messages as their bytes pass. A message counts once its length is known, as in Envoy's `grpc_stats`.
#[derive(Debug, Default)]
pub(super) struct MessageCounter {
    /// Messages so far.
    pub(super) count: u64,
    prefix: [u8; PREFIX],
    /// Bytes of `prefix` that have come.
    at: usize,
    /// Bytes of the message that have not.
    left: u64,
}

const PREFIX: usize = 5;

impl MessageCounter {
    /// Looks at the next bytes.
    pub(super) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let skip = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
                self.left -= skip as u64;
                data = &data[skip..];
                continue;
            }
            let (part, rest) = data.split_at(data.len().min(PREFIX - self.at));
            self.prefix[self.at..][..part.len()].copy_from_slice(part);
            self.at += part.len();
            data = rest;
            if self.at == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length).into();
                self.at = 0;
                self.count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let stream = [&b"\0\0\0\0\x05hello"[..], b"\0\0\0\0\0", b"\x01\0\0\x01\0", &[7; 256], b"\0\0\0\0\x01x"].concat();
        for size in 1..=stream.len() {
            let mut counter = MessageCounter::default();
            stream.chunks(size).for_each(|part| counter.feed(part));
            assert_eq!(counter.count, 4, "in pieces of {size}");
        }
        let mut counter = MessageCounter::default();
        counter.feed(b"\0\0\0");
        assert_eq!(counter.count, 0);
    }
}
