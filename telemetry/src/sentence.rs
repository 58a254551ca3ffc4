//! An error and its causes as one sentence for people.

use std::error::Error;

/// An error and its causes, joined by colons. A cause that the error above it has already spelled out is not said again.
#[must_use]
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        next = cause.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|layer| layer as &(dyn Error + 'static))
        }
    }

    fn of(layers: &[&'static str]) -> String {
        let below = layers.iter().rev().fold(None, |below, words| Some(Box::new(Layer(words, below))));
        sentence(&*below.unwrap())
    }

    #[test]
    fn a_cause_is_said_once() {
        assert_eq!(of(&["cannot listen", "in use"]), "cannot listen: in use");
        assert_eq!(of(&["cannot listen: in use", "in use"]), "cannot listen: in use");
        assert_eq!(of(&["a: b", "b", "c"]), "a: b: c");
        assert_eq!(of(&["a: b: c", "b: c", "c"]), "a: b: c");
    }
}
