//! Which lines of two texts differ.
//!
//! Lines that occur once in either text are matched in the longest order that both have (Bram Cohen's patience diff, without its
//! recursion): documents are JSON, of which nearly every line is unique, and an index has hundreds of thousands.

use std::collections::HashMap;

/// Lines that stand in the place of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hunk<'a> {
    /// Lines of the old text before it.
    pub(super) old_at: usize,
    pub(super) old: Vec<&'a str>,
    pub(super) new: Vec<&'a str>,
}

/// All differences, in order.
pub(super) fn hunks<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Hunk<'a>> {
    let mut found = Vec::new();
    let (mut o, mut n) = (0, 0);
    let ends = (old.len(), new.len());
    for (to_o, to_n) in anchors(old, new).into_iter().chain([ends]) {
        gap(&old[o..to_o], &new[n..to_n], o, &mut found);
        // The end is no line.
        (o, n) = ((to_o + 1).min(old.len()), (to_n + 1).min(new.len()));
    }
    found
}

/// What differs between two anchors.
fn gap<'a>(old: &[&'a str], new: &[&'a str], at: usize, found: &mut Vec<Hunk<'a>>) {
    let equal = |pair: &(&&str, &&str)| pair.0 == pair.1;
    let before = old.iter().zip(new).take_while(equal).count();
    let (old, new) = (&old[before..], &new[before..]);
    let after = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(equal)
        .count();
    let (old, new) = (&old[..old.len() - after], &new[..new.len() - after]);
    if !old.is_empty() || !new.is_empty() {
        found.push(Hunk {
            old_at: at + before,
            old: old.to_vec(),
            new: new.to_vec(),
        });
    }
}

/// Lines that are one in both texts, in order.
fn anchors(old: &[&str], new: &[&str]) -> Vec<(usize, usize)> {
    let mut places: HashMap<&str, ([usize; 2], [usize; 2])> = HashMap::new();
    for (side, lines) in [old, new].into_iter().enumerate() {
        for (i, line) in lines.iter().enumerate() {
            let (counts, at) = places.entry(line).or_default();
            counts[side] += 1;
            at[side] = i;
        }
    }
    let unique = |line: &&str| match places.get(line) {
        Some(([1, 1], [o, n])) => Some((*o, *n)),
        Some(_) | None => None,
    };
    increasing(&old.iter().filter_map(unique).collect::<Vec<_>>())
}

/// The longest run of pairs in which the second number grows as the first does.
fn increasing(pairs: &[(usize, usize)]) -> Vec<(usize, usize)> {
    // Of runs of each length the last pair that is smallest, and for each pair the one before it.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (i, pair) in pairs.iter().enumerate() {
        let at = ends.partition_point(|&end| pairs[end].1 < pair.1);
        before.push(at.checked_sub(1).map(|at| ends[at]));
        match ends.get_mut(at) {
            Some(end) => *end = i,
            None => ends.push(i),
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut next = ends.last().copied();
    while let Some(i) = next {
        run.push(pairs[i]);
        next = before[i];
    }
    run.reverse();
    run
}

/// Characters of a line that are shown as they are.
const MAX_CHARS: usize = 160;

/// Characters around a difference inside a longer line.
const AROUND: usize = 40;

/// Two long lines (a JSON text without line breaks), cut to where they differ.
pub(super) fn shortened(old: &str, new: &str) -> (String, String) {
    let (o, n): (Vec<char>, Vec<char>) = (old.chars().collect(), new.chars().collect());
    if o.len().max(n.len()) <= MAX_CHARS {
        return (old.to_owned(), new.to_owned());
    }
    let equal = |pair: &(&char, &char)| pair.0 == pair.1;
    let before = o.iter().zip(&n).take_while(equal).count();
    let (rest_o, rest_n) = (&o[before..], &n[before..]);
    let after = rest_o
        .iter()
        .rev()
        .zip(rest_n.iter().rev())
        .take_while(equal)
        .count();
    let cut = |line: &[char]| {
        let start = before.saturating_sub(AROUND);
        let end = (line.len() - after + AROUND).min(line.len());
        let middle: String = line[start..end].iter().collect();
        let dots = |is_cut: bool| if is_cut { "..." } else { "" };
        format!("{}{middle}{}", dots(start > 0), dots(end < line.len()))
    };
    (cut(&o), cut(&n))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the hunks make of the old text.
    fn applied<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<&'a str> {
        let (mut text, mut at) = (Vec::new(), 0);
        for hunk in hunks(old, new) {
            text.extend(&old[at..hunk.old_at]);
            text.extend(hunk.new);
            at = hunk.old_at + hunk.old.len();
        }
        text.extend(&old[at..]);
        text
    }

    #[test]
    fn hunks_lead_from_the_old_text_to_the_new_one() {
        let texts: [&[&str]; 7] = [
            &[],
            &["{", "a", "b", "}"],
            &["{", "a", "c", "b", "}"],
            &["{", "b", "a", "}"],
            &["{", "{", "x", "}", "}"],
            &["{", "a", "x", "}", "b"],
            &["}", "}"],
        ];
        for old in texts {
            for new in texts {
                assert_eq!(applied(old, new), new, "{old:?} to {new:?}");
            }
        }
        let hunk = hunks(texts[1], texts[2]);
        assert_eq!(hunk.len(), 1);
        assert_eq!((hunk[0].old_at, &*hunk[0].new), (2, &["c"][..]));
    }

    #[test]
    fn long_lines_are_cut_to_what_differs() {
        let (a, b) = ("x".repeat(500), "y".repeat(500));
        let (old, new) = shortened(&format!("{a}1{b}"), &format!("{a}23{b}"));
        assert_eq!(old.len() + 1, new.len());
        assert!(old.starts_with("...xx") && old.ends_with("yy..."), "{old}");
        assert!(new.contains("x23y"));
        assert_eq!(shortened("a", "b"), ("a".to_owned(), "b".to_owned()));
    }
}
