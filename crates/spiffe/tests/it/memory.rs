//! What is left of private keys in this process once they are dropped.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use finial_spiffe::key::{KeyKind, PrivateKey};
use finial_spiffe::x509::{CsrTemplate, Name};

/// Keys are looked for by their first eight bytes, which are kept in another shape.
const MASK: u64 = 0x5c36_a55a_c33c_9669;

/// The first eight bytes of a P-256 key's number (RFC 5915), masked.
fn mark(pkcs8: &[u8]) -> u64 {
    let before = [0x02, 0x01, 0x01, 0x04, 0x20];
    let at = pkcs8.windows(before.len()).position(|window| window == before).unwrap() + before.len();
    // Byte by byte, so that it is nowhere as it is, not on the stack either.
    let masks = MASK.to_be_bytes();
    (0..8).fold(0, |mark, place| mark << 8 | u64::from(pkcs8[at + place] ^ masks[place]))
}

/// How often each of these marks stands in memory that this process may write to.
fn found(marks: &[u64]) -> Option<HashMap<u64, usize>> {
    let memory = File::open("/proc/self/mem").ok()?;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut counts: HashMap<u64, usize> = marks.iter().map(|mark| (*mark, 0)).collect();
    // One buffer for all, so that no copy of what was read is read again.
    let mut buffer = vec![0_u8; 1 << 16];
    let own = buffer.as_ptr() as u64..buffer.as_ptr() as u64 + buffer.len() as u64;
    for line in maps.lines().filter(|line| line.contains(" rw") && !line.contains("[v")) {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let (mut at, to) = (number(from)?, number(to)?);
        while at + 8 <= to {
            let length = (to - at).min(buffer.len() as u64);
            let piece = &mut buffer[..usize::try_from(length).ok()?];
            if memory.read_exact_at(piece, at).is_err() {
                break;
            }
            for (offset, window) in piece.windows(8).enumerate() {
                let place = at + offset as u64;
                let is_own = own.contains(&place) || own.contains(&(place + 7));
                let mark = u64::from_be_bytes(window.try_into().unwrap()) ^ MASK;
                if let Some(count) = counts.get_mut(&mark).filter(|_| !is_own) {
                    *count += 1;
                }
            }
            // The pieces overlap, as a key may lie across their ends.
            at += if length == to - at { length } else { length - 7 };
        }
    }
    Some(counts)
}

#[test]
fn k06_nothing_of_a_key_is_left_once_it_is_dropped() {
    let mut marks = Vec::new();
    for _ in 0..20 {
        let key = PrivateKey::generate(KeyKind::EcP256).unwrap();
        let written = key.to_pkcs8().unwrap();
        marks.push(mark(&written));
        let read = PrivateKey::from_der(&written).unwrap();
        let template = CsrTemplate { subject: Name::new(&[]), id: None, dns_names: Vec::new() };
        let _request = template.sign(&read).unwrap();
        let again = read.to_pkcs8().unwrap();
        assert_eq!(mark(&again), mark(&written));
    }
    let held = PrivateKey::generate(KeyKind::EcP256).unwrap();
    let document = held.to_pkcs8().unwrap();
    let present = mark(&document);

    let Some(counts) = found(&[&marks[..], &[present]].concat()) else {
        return testkit::skip("keys in memory: this process may not read its own");
    };

    assert!(counts[&present] > 0, "what is there is found");
    let left: Vec<_> = marks.iter().filter(|mark| counts[mark] > 0).map(|mark| counts[mark]).collect();
    assert!(left.is_empty(), "{} of {} keys are left: {left:?}", left.len(), marks.len());
    drop(document);
    drop(held);
}
