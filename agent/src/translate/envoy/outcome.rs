//! What is wrong with a message, and where: errors that grow their path on the way up.

/// One thing that cannot be honoured, at a path inside the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    pub(crate) path: String,
    pub(crate) reason: String,
}

/// A translated value, or everything that is wrong with its message.
pub(crate) type Outcome<T> = Result<T, Vec<Invalid>>;

/// A failure at the place where it is found; callers add the path with [`At::at`].
pub(crate) fn invalid<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(vec![Invalid { path: String::new(), reason: reason.into() }])
}

/// Puts a field name, a map key or an index before the path of a failure.
pub(crate) trait At {
    /// The failure happened inside `segment` (`filters[0]`, `route_config`).
    fn at(self, segment: &str) -> Self;
}

impl At for Invalid {
    fn at(mut self, segment: &str) -> Self {
        let separator = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{segment}{separator}{}", self.path);
        self
    }
}

impl<T> At for Outcome<T> {
    fn at(self, segment: &str) -> Self {
        self.map_err(|all| all.into_iter().map(|one| one.at(segment)).collect())
    }
}

/// Translates a repeated field; the failures of all its elements are reported together.
pub(crate) fn each<'a, A: 'a, B>(
    items: impl IntoIterator<Item = &'a A>,
    field: &str,
    mut translate: impl FnMut(&'a A) -> Outcome<B>,
) -> Outcome<Vec<B>> {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for (index, item) in items.into_iter().enumerate() {
        match translate(item) {
            Ok(value) => done.push(value),
            Err(all) => failed.extend(all.into_iter().map(|one| one.at(&format!("{field}[{index}]")))),
        }
    }
    if failed.is_empty() { Ok(done) } else { Err(failed) }
}

/// Translates an optional message field.
pub(crate) fn maybe<'a, A, B>(
    field: Option<&'a A>,
    name: &str,
    translate: impl FnOnce(&'a A) -> Outcome<B>,
) -> Outcome<Option<B>> {
    field.map(translate).transpose().at(name)
}

/// A message field that must be set.
pub(crate) fn required<'a, T>(field: Option<&'a T>, name: &str) -> Outcome<&'a T> {
    field.map_or_else(|| invalid("is missing").at(name), Ok)
}
