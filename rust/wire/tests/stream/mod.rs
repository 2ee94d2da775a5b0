//! What the tests of the wire share.
#![allow(unreachable_pub, reason = "each test binary has it as a module of its own")]

use hybridps_wire::FrameSize;

/// Frames of a stream, which is whole.
pub fn frames(mut words: &[u64]) -> Vec<Vec<u64>> {
    let mut frames = Vec::new();
    while !words.is_empty() {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let Ok(FrameSize::Known(size)) = FrameSize::of(&bytes, 1 << 24) else {
            panic!("not a whole frame")
        };
        let (frame, rest) = words.split_at(size / 8);
        frames.push(frame.to_vec());
        words = rest;
    }
    frames
}
