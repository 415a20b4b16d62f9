//! Pages of files that are mapped into the process: the program itself and what it is linked to.

use std::fs;

/// Of a mapping whose pages are those of its file, unchanged.
#[derive(Debug, PartialEq, Eq)]
struct Clean {
    start: usize,
    length: usize,
}

/// Takes clean pages out of the page tables. The kernel maps 64 KiB around every page that is touched once; most of a program is
/// never touched again after its start.
pub(super) fn give_back() {
    for Clean { start, length } in clean(&fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        // SAFETY: the range is a mapping of this process that cannot be written and holds no page that differs from its file
        // (`Anonymous: 0`), so that whoever reads it next finds the same bytes, from the file.
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Mappings of files that nobody can write to and nobody has. <https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html>
fn clean(smaps: &str) -> Vec<Clean> {
    let (mut all, mut current) = (Vec::new(), None);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("Anonymous:") if words.next() == Some("0") => all.extend(current.take()),
            Some(first) if !first.ends_with(':') => current = file_mapping(first, words),
            _ => {}
        }
    }
    all
}

/// `55e6…-55e7… r-xp 00001000 fe:00 1234   /usr/bin/skiff`
fn file_mapping<'a>(range: &str, mut words: impl Iterator<Item = &'a str>) -> Option<Clean> {
    let (start, end) = range.split_once('-')?;
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16));
    let (start, end) = (start.ok()?, end.ok()?);
    let is_private_and_read_only = matches!(words.next()?.as_bytes(), [b'r', b'-', _, b'p']);
    let is_file = words.nth(3)?.starts_with('/');
    (is_private_and_read_only && is_file && end > start).then(|| Clean { start, length: end - start })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_pages_of_read_only_files_are_clean() {
        let smaps = "\
55d0-55e0 r--p 00000000 fe:00 7   /usr/bin/skiff
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
55e0-5600 r-xp 00010000 fe:00 7   /usr/bin/skiff
Anonymous:             0 kB
5600-5610 r--p 00030000 fe:00 7   /usr/bin/skiff
Anonymous:             8 kB
5610-5620 rw-p 00040000 fe:00 7   /usr/bin/skiff
Anonymous:             0 kB
5700-5800 r--p 00000000 00:00 0
Anonymous:             0 kB
7ff0-7ff1 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
7000-7010 r--s 00000000 fe:00 9   /var/shared
Anonymous:             0 kB
";
        let expected = [Clean { start: 0x55d0, length: 0x10 }, Clean { start: 0x55e0, length: 0x20 }];
        assert_eq!(clean(smaps), expected);
        assert_eq!(clean("nonsense\nzz-1 r-xp 0 0 0 /x\nAnonymous: 0 kB\n"), []);
    }
}
