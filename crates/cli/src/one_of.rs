//! Arguments that are one of several names which a library keeps, each with its sentence for `--help`.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

/// One of `values`, each with name and meaning; `older` has older names with today's.
pub fn one_of<T: Clone + Send + Sync + 'static>(
    values: impl IntoIterator<Item = (T, &'static str, &'static str)>,
    older: &'static [(&'static str, &'static str)],
) -> impl TypedValueParser<Value = T> {
    let values: Vec<(T, &str, &str)> = values.into_iter().collect();
    let shown = |(_, name, meaning): &(T, &'static str, &'static str)| {
        PossibleValue::new(*name).help(*meaning).aliases(older.iter().filter(|(_, new)| new == name).map(|(old, _)| *old))
    };
    PossibleValuesParser::new(values.iter().map(shown).collect::<Vec<_>>()).try_map(move |typed| {
        let name = older.iter().find(|(old, _)| *old == typed).map_or(typed.as_str(), |(_, new)| new);
        values.iter().find(|(_, known, _)| *known == name).map(|(value, ..)| value.clone()).ok_or("there is no such name")
    })
}
