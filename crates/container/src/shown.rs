//! Names and shapes from files, made fit for a message.

use std::fmt;

/// Characters of a name that a message shows at most.
pub(crate) const MAX_SHOWN_CHARS: usize = 200;

/// A hostile string, made fit for a terminal: no control, no bidirectional override, not too long.
pub(crate) struct Shown<'a, T: AsRef<str> + ?Sized>(pub(crate) &'a T);

impl<T: AsRef<str> + ?Sized> fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.as_ref();
        if text.is_empty() {
            return f.write_str("\"\"");
        }
        for (i, char) in text.chars().enumerate() {
            if i == MAX_SHOWN_CHARS {
                return f.write_str("...");
            }
            match char {
                // C0, DEL, C1; zero-width and bidirectional marks; line separators; byte order mark.
                '\0'..='\x1f'
                | '\x7f'..='\u{9f}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}' => {
                    write!(f, "{}", char.escape_unicode())?;
                }
                _ => write!(f, "{char}")?,
            }
        }
        Ok(())
    }
}

/// A shape of any rank, cut to the first dimensions.
pub(crate) struct ShownShape<'a>(pub(crate) &'a [u64]);

impl fmt::Display for ShownShape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..9) {
            Some(head) => write!(f, "{head:?} and {} more dimensions", self.0.len() - 9),
            None => write!(f, "{:?}", self.0),
        }
    }
}
