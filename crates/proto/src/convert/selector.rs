//! Selectors, in the two spellings of the wire.

use spiffe::Selector;

use crate::spire::{common, types};

/// Why the selectors of a request were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No type.
    #[error("missing selector type")]
    NoType,
    /// The type could not be told from the value in `type:value`.
    #[error("selector type contains ':'")]
    ColonInType,
    /// No value.
    #[error("missing selector value")]
    NoValue,
}

impl From<&Selector> for types::Selector {
    fn from(selector: &Selector) -> Self {
        Self { r#type: selector.kind().to_owned(), value: selector.value().to_owned() }
    }
}

impl From<&Selector> for common::Selector {
    fn from(selector: &Selector) -> Self {
        Self { r#type: selector.kind().to_owned(), value: selector.value().to_owned() }
    }
}

impl From<&common::Selector> for Selector {
    fn from(wire: &common::Selector) -> Self {
        Self::new(&wire.r#type, &wire.value)
    }
}

impl TryFrom<&types::Selector> for Selector {
    type Error = SelectorError;

    fn try_from(wire: &types::Selector) -> Result<Self, SelectorError> {
        if wire.r#type.is_empty() {
            return Err(SelectorError::NoType);
        }
        if wire.r#type.contains(':') {
            return Err(SelectorError::ColonInType);
        }
        if wire.value.is_empty() {
            return Err(SelectorError::NoValue);
        }
        Ok(Self::new(&wire.r#type, &wire.value))
    }
}

/// The selectors of a request, in its order.
///
/// # Errors
/// One of them is incomplete.
pub fn all(wire: &[types::Selector]) -> Result<Vec<Selector>, SelectorError> {
    wire.iter().map(Selector::try_from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_selectors_are_refused() {
        let refusal = |kind: &str, value: &str| {
            let wire = types::Selector { r#type: kind.into(), value: value.into() };
            Selector::try_from(&wire).expect_err("refused").to_string()
        };

        assert_eq!(refusal("", "a"), "missing selector type");
        assert_eq!(refusal("a:b", "a"), "selector type contains ':'");
        assert_eq!(refusal("a", ""), "missing selector value");
    }

    #[test]
    fn a_value_may_contain_colons() {
        let selector = Selector::new("unix", "uid:1000");

        assert_eq!(Selector::try_from(&types::Selector::from(&selector)), Ok(selector));
    }
}
