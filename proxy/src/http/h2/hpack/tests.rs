use super::*;

type Pair<'a> = (&'a str, &'a str);

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut fields = Vec::new();
    decoder.begin();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let taken = decoder.decode(block, |field| fields.push((text(field.name), text(field.value))))?;
    if taken == block.len() { Ok(fields) } else { Err(Malformed) }
}

fn encode(encoder: &mut Encoder, fields: &[Pair<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.begin(&mut block);
    for (name, value) in fields {
        encoder.field(&mut block, name.as_bytes(), value.as_bytes());
    }
    block
}

fn owned(fields: &[Pair<'_>]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn the_requests_of_the_rfc_decode() {
    // RFC 7541 appendix C.4: three requests on one connection, with Huffman.
    let blocks: [&[u8]; 3] = [
        &[0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff],
        &[0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf],
        &[
            0x82, 0x87, 0x85, 0xbf, 0x40, 0x88, 0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f, 0x89, 0x25, 0xa8, 0x49, 0xe9,
            0x5b, 0xb8, 0xe8, 0xb4, 0xbf,
        ],
    ];
    let host = (":authority", "www.example.com");
    let mut decoder = Decoder::new();
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), host];
    assert_eq!(decode(&mut decoder, blocks[0]), Ok(owned(&first)));
    let second = [(":method", "GET"), (":scheme", "http"), (":path", "/"), host, ("cache-control", "no-cache")];
    assert_eq!(decode(&mut decoder, blocks[1]), Ok(owned(&second)));
    let third = [(":method", "GET"), (":scheme", "https"), (":path", "/index.html"), host, ("custom-key", "custom-value")];
    assert_eq!(decode(&mut decoder, blocks[2]), Ok(owned(&third)));
}

#[test]
fn what_is_encoded_decodes_and_repeats_are_short() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let mut sizes = Vec::new();
    for round in 0..200 {
        let id = format!("id-{round}");
        let fields = [
            (":method", "GET"),
            (":path", "/products?page=1"),
            (":authority", "details.bookinfo:9080"),
            ("user-agent", "curl/8"),
            ("x-request-id", id.as_str()),
            ("authorization", "Bearer secret"),
            ("x-empty", ""),
            ("date", "Sat, 21 Nov 2026 15:00:00 GMT"),
        ];
        let block = encode(&mut encoder, &fields);
        assert_eq!(decode(&mut decoder, &block), Ok(owned(&fields)), "round {round}");
        sizes.push(block.len());
    }
    assert!(sizes[1] < sizes[0] / 2, "{sizes:?}");
    assert_eq!(sizes[20], sizes[30], "entries stay where they are: {sizes:?}");
}

#[test]
fn tables_of_both_sides_evict_alike() {
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
    let large = "v".repeat(1500);
    for round in 0..50 {
        let name = format!("x-{}", round % 7);
        let fields = [(name.as_str(), large.as_str()), ("x-small", "1"), (name.as_str(), "other")];
        assert_eq!(decode(&mut decoder, &encode(&mut encoder, &fields)), Ok(owned(&fields)), "round {round}");
    }
    encoder.resize(100);
    for round in 0..5 {
        let fields = [("x-a", "1"), ("x-b", large.as_str()), ("x-a", "1")];
        assert_eq!(decode(&mut decoder, &encode(&mut encoder, &fields)), Ok(owned(&fields)), "after shrinking, {round}");
    }
    encoder.resize(1 << 30);
    let fields = [("x-a", "1")];
    assert_eq!(decode(&mut decoder, &encode(&mut encoder, &fields)), Ok(owned(&fields)));
}

#[test]
fn malformed_blocks_are_refused() {
    for (block, what) in [
        (&[0x80][..], "index zero"),
        (&[0xff, 0x00], "an index beyond both tables"),
        (&[0x3f, 0xff, 0xff, 0x03], "a table larger than allowed"),
        (&[0x82, 0x20], "a table size after a field"),
        (&[0x00, 0x05, b'a'], "a literal that is cut short"),
        (&[0x00, 0x01, b'x', 0x82, 0xff, 0xff], "sixteen bits of padding"),
        (&[0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f], "a length that overflows"),
        (&[0x00, 0x01, b'x', 0x7f, 0x82, 0xff, 0x03], "a value of more than 64 KiB"),
    ] {
        assert_eq!(decode(&mut Decoder::new(), block), Err(Malformed), "{what}");
    }
}

#[test]
fn a_block_may_come_in_pieces() {
    let fields = [(":method", "GET"), ("x-a", "some value"), ("x-b", "another")];
    let block = encode(&mut Encoder::new(), &fields);
    let (mut decoder, mut names, mut rest) = (Decoder::new(), Vec::new(), Vec::new());
    for byte in block {
        rest.push(byte);
        let taken = decoder.decode(&rest, |field| names.push(field.name.to_vec())).unwrap();
        rest.drain(..taken);
    }
    assert_eq!(names, [b":method".to_vec(), b"x-a".to_vec(), b"x-b".to_vec()]);
    assert!(rest.is_empty());
}

#[test]
fn illegal_characters_are_told_also_from_the_table() {
    let mut decoder = Decoder::new();
    // A literal that is kept, then its index.
    let block = [0x40, 0x01, b'x', 0x03, b'a', b'\n', b'b', 0xbe, 0x40, 0x01, b'X', 0x01, b'1'];
    let mut legal = Vec::new();
    decoder.decode(&block, |field| legal.push(field.legal)).unwrap();
    assert_eq!(legal, [false, false, false]);
}
