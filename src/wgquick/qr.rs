//! The picture of a file, for the camera of the stock app.

use std::fmt::Write as _;

use qrcode::{Color, EcLevel, QrCode};

/// Light modules around the picture that a reader needs (ISO/IEC 18004, section 9.1).
const QUIET: usize = 4;
/// Pixels of a module in a file.
const SCALE: usize = 8;
/// Black on white from the part of the palette that terminal themes leave alone, and back.
const INK: &str = "\x1b[38;5;16;48;5;231m";
const NO_INK: &str = "\x1b[0m";

/// More than a QR code holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes are more than a QR code holds, which are 2953")]
pub struct TooLong(usize);

/// A square of dark and light modules.
pub struct Qr {
    width: usize,
    dark: Vec<bool>,
}

impl Qr {
    /// The smallest one that holds the text.
    ///
    /// # Errors
    /// When none does.
    pub fn of(text: &str) -> Result<Self, TooLong> {
        // A screen has no scratches: the lowest level of correction makes the largest modules.
        let code = QrCode::with_error_correction_level(text, EcLevel::L).map_err(|_| TooLong(text.len()))?;
        Ok(Self { width: code.width(), dark: code.into_colors().iter().map(|color| *color == Color::Dark).collect() })
    }

    /// Columns that it takes in a terminal; as many rows of pixels, two to a line.
    pub fn columns(&self) -> usize {
        self.width + 2 * QUIET
    }

    /// Lines of half blocks, black on white whatever the terminal's colours are.
    pub fn terminal(&self) -> String {
        let mut text = String::new();
        for y in (0..self.columns()).step_by(2) {
            text.push_str(INK);
            for x in 0..self.columns() {
                text.push(match (self.is_dark(x, y), self.is_dark(x, y + 1)) {
                    (false, false) => ' ',
                    (true, false) => '▀',
                    (false, true) => '▄',
                    (true, true) => '█',
                });
            }
            // A String takes all that is written to it.
            let _ = writeln!(text, "{NO_INK}");
        }
        text
    }

    /// The same as a file.
    ///
    /// # Errors
    /// None that a picture of this size is known to give.
    pub fn png(&self) -> Result<Vec<u8>, png::EncodingError> {
        let side = self.columns() * SCALE;
        let pixels: Vec<u8> = (0..side * side)
            .map(|at| if self.is_dark(at % side / SCALE, at / side / SCALE) { 0 } else { 255 })
            .collect();
        let mut file = Vec::new();
        // At most 185 modules of 8 pixels.
        let mut encoder = png::Encoder::new(&mut file, side as u32, side as u32);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()?;
        Ok(file)
    }

    /// Of the picture with its margin; beyond it all is light.
    fn is_dark(&self, x: usize, y: usize) -> bool {
        let inside = |at: usize| at.checked_sub(QUIET).filter(|&at| at < self.width);
        inside(x).zip(inside(y)).is_some_and(|(x, y)| self.dark[y * self.width + x])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a camera reads in a picture of so many pixels a side.
    fn read(side: usize, dark: impl Fn(usize, usize) -> bool) -> String {
        let mut picture =
            rqrr::PreparedImage::prepare_from_greyscale(side, side, |x, y| if dark(x, y) { 0 } else { 255 });
        let grids = picture.detect_grids();
        assert_eq!(grids.len(), 1, "one code");
        grids[0].decode().unwrap().1
    }

    fn terminal(text: &str) -> String {
        let lines: Vec<Vec<char>> = text
            .lines()
            .map(|line| line.strip_prefix(INK).unwrap().strip_suffix(NO_INK).unwrap().chars().collect())
            .collect();
        let side = lines[0].len();
        // Each half block is a square of 3 by 3 pixels.
        read(side * 3, |x, y| {
            let (half, block) = (y / 3 % 2, lines[y / 6][x / 3]);
            block == '█' || block == ['▀', '▄'][half]
        })
    }

    #[test]
    fn a_camera_reads_what_was_written() {
        for length in [1, 100, 425, 1000, 2953] {
            let text = "PrivateKey=".chars().cycle().take(length).collect::<String>();
            let qr = Qr::of(&text).unwrap();
            assert_eq!(terminal(&qr.terminal()), text);
            let file = qr.png().unwrap();
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
            let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
            let side = reader.next_frame(&mut pixels).unwrap().width as usize;
            assert_eq!(read(side, |x, y| pixels[y * side + x] == 0), text);
        }
        assert_eq!(Qr::of(&"x".repeat(425)).unwrap().columns(), 77, "fits 80 columns");
        assert_eq!(Qr::of(&"x".repeat(2954)).err(), Some(TooLong(2954)));
    }
}
