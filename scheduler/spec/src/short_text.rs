//! A text that is short nearly always, kept where it is used rather than on the heap.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes that need no heap: the whole is then as large as four words.
const INLINE: usize = 30;

/// A text of whatever length, ordered as texts are. Up to thirty bytes it is copied and compared without following a pointer, which is
/// what maps with hundreds of thousands of ids spend their time on.
#[derive(Clone)]
pub struct ShortText(Kept);

/// How it is kept follows from its length alone, so that equal texts are kept alike.
#[derive(Clone)]
enum Kept {
    /// UTF-8, with zeros behind it.
    Here {
        length: u8,
        bytes: [u8; INLINE],
    },
    There(Box<str>),
}

impl ShortText {
    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Kept::Here { length, bytes } => {
                std::str::from_utf8(&bytes[..usize::from(*length)]).expect("it was made from a text")
            }
            Kept::There(text) => text,
        }
    }

    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Kept::Here { length, bytes } => &bytes[..usize::from(*length)],
            Kept::There(text) => text.as_bytes(),
        }
    }
}

/// The first sixteen bytes as a number that is ordered like them.
#[inline]
fn beginning(bytes: &[u8; INLINE]) -> u128 {
    bytes.first_chunk().map_or(0, |first| u128::from_be_bytes(*first))
}

impl From<&str> for ShortText {
    fn from(text: &str) -> Self {
        let mut bytes = [0; INLINE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self(Kept::Here { length, bytes })
            }
            _ => Self(Kept::There(text.into())),
        }
    }
}

impl From<String> for ShortText {
    fn from(text: String) -> Self {
        if text.len() > INLINE { Self(Kept::There(text.into())) } else { text.as_str().into() }
    }
}

impl Default for ShortText {
    fn default() -> Self {
        Self::from("")
    }
}

impl Ord for ShortText {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        if let (Kept::Here { bytes, .. }, Kept::Here { bytes: others, .. }) = (&self.0, &other.0) {
            // Nearly always that says it. What is behind the end of a shorter one is zero, so that it is the lesser.
            let (own, others) = (beginning(bytes), beginning(others));
            if own != others {
                return own.cmp(&others);
            }
        }
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for ShortText {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ShortText {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ShortText {}

impl Hash for ShortText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for ShortText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for ShortText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ShortText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ShortText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ShortText, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl JsonSchema for ShortText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        String::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_ordered_equal_and_written_like_the_text_that_it_was_made_from(
            one in "[a-c\0é]{0,40}",
            other in "[a-c\0é]{0,40}",
            cut in 0_usize..40,
        ) {
            let beginning: String = one.chars().take(cut).collect();
            for other in [other, beginning] {
                let (a, b) = (ShortText::from(one.as_str()), ShortText::from(other.as_str()));
                prop_assert_eq!(a.cmp(&b), one.cmp(&other));
                prop_assert_eq!(a == b, one == other);
                prop_assert_eq!(a.as_str(), one.as_str());
                let written = serde_json::to_string(&a).expect("a text can be written");
                prop_assert_eq!(&written, &serde_json::to_string(&one).expect("a text can be written"));
                prop_assert_eq!(serde_json::from_str::<ShortText>(&written).expect("it was just written"), a);
            }
        }
    }

    #[test]
    fn it_is_as_large_as_four_words_and_a_task_s_id_needs_no_heap() {
        assert_eq!(size_of::<ShortText>(), 32);
        assert!(matches!(ShortText::from("0123456789abcdefghijklmno").0, Kept::Here { length: 25, .. }));
    }
}
