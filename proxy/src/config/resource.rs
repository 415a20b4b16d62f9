//! A resource of the configuration that need not lie in memory as itself.
//!
//! A mesh has thousands of services and a sidecar talks to a few. The others are kept as whoever sent them wrote them, packed,
//! and made into the model again when a request asks for them.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// What a resource can be made of again.
pub trait Source<T>: Send + Sync {
    /// Makes it. Only what has been made once, and taken over, becomes a source: it can be made again.
    fn make(&self) -> Arc<T>;
}

/// A resource: as itself, or as what it can be made of. Cheap to clone. Equal when what it stands for is equal.
pub struct Resource<T>(Form<T>);

enum Form<T> {
    Whole(Arc<T>),
    Packed(Arc<dyn Source<T>>),
}

impl<T> Resource<T> {
    /// One that is made when it is needed.
    pub fn packed(source: Arc<dyn Source<T>>) -> Self {
        Self(Form::Packed(source))
    }

    /// The resource itself. Made anew each time where it is packed: whoever uses it keeps it.
    pub fn get(&self) -> Arc<T> {
        match &self.0 {
            Form::Whole(whole) => Arc::clone(whole),
            Form::Packed(source) => source.make(),
        }
    }

    /// The resource itself, unless it is packed.
    pub fn whole(&self) -> Option<&Arc<T>> {
        match &self.0 {
            Form::Whole(whole) => Some(whole),
            Form::Packed(_) => None,
        }
    }

    /// Whether both are the same object, which is cheaper to know than whether they are equal.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Form::Whole(a), Form::Whole(b)) => Arc::ptr_eq(a, b),
            (Form::Packed(a), Form::Packed(b)) => std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b)),
            _ => false,
        }
    }
}

impl<T> Clone for Resource<T> {
    fn clone(&self) -> Self {
        Self(match &self.0 {
            Form::Whole(whole) => Form::Whole(Arc::clone(whole)),
            Form::Packed(source) => Form::Packed(Arc::clone(source)),
        })
    }
}

impl<T> From<Arc<T>> for Resource<T> {
    fn from(whole: Arc<T>) -> Self {
        Self(Form::Whole(whole))
    }
}

impl<T> From<T> for Resource<T> {
    fn from(whole: T) -> Self {
        Self::from(Arc::new(whole))
    }
}

impl<T: Default> Default for Resource<T> {
    fn default() -> Self {
        Self::from(T::default())
    }
}

impl<T: PartialEq> PartialEq for Resource<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || *self.get() == *other.get()
    }
}

impl<T: fmt::Debug> fmt::Debug for Resource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl<T: Serialize> Serialize for Resource<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Digits(&'static str);

    impl Source<u32> for Digits {
        fn make(&self) -> Arc<u32> {
            Arc::new(self.0.parse().unwrap())
        }
    }

    #[test]
    fn a_packed_resource_equals_what_it_stands_for() {
        let packed = |digits| Resource::packed(Arc::new(Digits(digits)));
        let seven = packed("7");
        assert!(seven.is_same(&seven.clone()) && !seven.is_same(&packed("7")));
        assert_eq!(seven, packed("07"));
        assert_eq!(seven, Resource::from(7));
        assert_ne!(seven, packed("8"));
        assert_eq!((seven.whole(), Resource::from(7).whole()), (None, Some(&Arc::new(7))));
        assert_eq!((format!("{seven:?}"), serde_json::to_string(&seven).unwrap()), ("7".to_owned(), "7".to_owned()));
    }
}
