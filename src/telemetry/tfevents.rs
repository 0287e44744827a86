//! TensorBoard's event files, written without TensorFlow: records of `tensorflow.Event` messages with scalars in them.
//!
//! Guarantees:
//! - Every function returns one whole record; a file is [`header`] and then any number of [`scalars`], one after the other,
//!   so it may be read while it grows.
//! - What TensorBoard's own reader gives back are the same steps, names, times, and values rounded to 32 bits.
//!
//! The framing is that of TFRecord files (`tensorflow/core/lib/io/record_writer.h`): length, its checksum, bytes, their
//! checksum. The messages are those of `event.proto` and `summary.proto`, of which a handful of fields are needed here.

use crc::{CRC_32_ISCSI, Crc};

/// CRC32C.
const CHECKSUM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// What is added to a rotated checksum, so that a checksum over bytes that hold checksums is still a good one.
const MASK: u32 = 0xa282_ead8;

/// The first record of a file; `wall_time` is in seconds since 1970.
#[must_use]
pub fn header(wall_time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.bytes(3, b"brain.Event:2");
    event.record()
}

/// The values of one step, by their names in TensorBoard (`train/loss`); `wall_time` is in seconds since 1970.
#[must_use]
pub fn scalars(wall_time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in values {
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.float(2, *value as f32);
        summary.bytes(1, &entry.0);
    }
    let mut event = Message::default();
    event.double(1, wall_time);
    event.varint(2, step);
    event.bytes(5, &summary.0);
    event.record()
}

/// A protocol buffer message in the making.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.number(value);
    }

    fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, 2);
        self.number(value.len() as u64);
        self.0.extend(value);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.number(u64::from(field << 3 | wire_type));
    }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn record(self) -> Vec<u8> {
        let length = (self.0.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(self.0.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(&self.0);
        record.extend(masked(&self.0).to_le_bytes());
        record
    }
}

fn masked(bytes: &[u8]) -> u32 {
    CHECKSUM.checksum(bytes).rotate_right(15).wrapping_add(MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the writer of the tensorboard package (2.21.0: RecordWriter, Event, Summary) makes of the same two events.
    const GOLDEN: &str = "1800000000000000a37f4b2209000000000000f83f1a0d627261696e2e4576656e743a322a28646c\
                          3c00000000000000c8b7a35209000010402049da4110ac022a2e0a110a0a747261696e2f6c6f7373150000803e\
                          0a190a1273706565642f696d616765735f7065725f731500000000d90f3934";

    #[test]
    fn bytes_are_those_of_tensorboards_own_writer() {
        let values = [("train/loss".to_owned(), 0.25), ("speed/images_per_s".to_owned(), 0.0)];
        let mut bytes = header(1.5);
        bytes.extend(scalars(1_764_000_000.25, 300, &values));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }
}
