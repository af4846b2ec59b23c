//! TensorBoard's event files: curves and images of a run that TensorBoard shows while it goes on.
//!
//! The format: records of length, masked CRC-32C of the length, data, masked CRC-32C of the data; each datum a protobuf
//! message `Event` (TensorFlow's `tensorflow/core/util/event.proto` and `tensorflow/core/framework/summary.proto`).

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// One event file, appended to and flushed with every event.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// A new file in `dir`. A run that goes on from a checkpoint at `step` tells TensorBoard to forget what an earlier file
    /// says of later steps.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn create(dir: &Path, step: u64) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let now = now();
        // TensorBoard reads files in the order of their names.
        let path = dir.join(format!("events.out.tfevents.{:010}.{}.laptop-diff", now as u64, std::process::id()));
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let mut writer = Self { file, path };
        writer.write(&event(now, None, |e| e.bytes(3, b"brain.Event:2")))?;
        if step > 0 {
            // SessionLog { status: START }
            writer.write(&event(now, Some(step), |e| e.message(7, |log| log.varint(1, 1))))?;
        }
        Ok(writer)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Points of curves at `step`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.write(&scalars(now(), step, values))
    }

    /// A PNG image at `step`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn image(&mut self, step: u64, tag: &str, (width, height): (u32, u32), png: &[u8]) -> Result<()> {
        self.write(&image(now(), step, tag, (width, height), png))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        let io = Error::io(&self.path);
        self.file.write_all(&record(event)).and_then(|()| self.file.flush()).map_err(io)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length, &masked(&length).to_le_bytes()[..], data, &masked(data).to_le_bytes()].concat()
}

fn masked(data: &[u8]) -> u32 {
    CRC.checksum(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn event(wall_time: f64, step: Option<u64>, body: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut e = Message::default();
    e.double(1, wall_time);
    if let Some(step) = step {
        e.varint(2, step);
    }
    body(&mut e);
    e.0
}

fn scalars(wall_time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    event(wall_time, Some(step), |e| {
        e.message(5, |summary| {
            for (tag, value) in values {
                summary.message(1, |v| {
                    v.bytes(1, tag.as_bytes());
                    v.float(2, *value as f32);
                });
            }
        });
    })
}

fn image(wall_time: f64, step: u64, tag: &str, (width, height): (u32, u32), png: &[u8]) -> Vec<u8> {
    event(wall_time, Some(step), |e| {
        e.message(5, |summary| {
            summary.message(1, |v| {
                v.bytes(1, tag.as_bytes());
                v.message(4, |image| {
                    image.varint(1, height.into());
                    image.varint(2, width.into());
                    // RGB
                    image.varint(3, 3);
                    image.bytes(4, png);
                });
            });
        });
    })
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.number(field << 3);
        self.number(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.number(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.number(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.number(field << 3 | 2);
        self.number(value.len() as u64);
        self.0.extend(value);
    }

    fn message(&mut self, field: u64, body: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        body(&mut inner);
        self.bytes(field, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by TensorBoard's own writer (tests/fixtures/gen_events.py) at the same wall times.
    const FIXTURE: &[u8] = include_bytes!("../../../../tests/fixtures/events/events.bin");

    #[test]
    fn records_equal_those_of_tensorboards_own_writer() {
        let png = b"no real picture";
        let ours = [
            record(&event(1.5, None, |e| e.bytes(3, b"brain.Event:2"))),
            record(&event(2.5, Some(300), |e| e.message(7, |log| log.varint(1, 1)))),
            record(&scalars(3.25, 301, &[("loss/total", 0.125), ("loss/feat.mid_block", 1e-7)])),
            record(&image(4.0, 100_000, "pictures", (640, 130), png)),
        ]
        .concat();
        assert!(ours == FIXTURE, "{ours:02x?}\n{FIXTURE:02x?}");
    }
}
