//! What the commands that read images with captions share: the columns of tables, a source's flags, and settings named as flags.

use clap::Args;
use data::Columns;

use crate::common::{BadFile, BadInput};

/// Which columns of a Parquet table hold what.
#[derive(Debug, Args)]
pub struct ColumnArgs {
    /// For tables: the column with the image files, or with their paths from the table's folder [default: the first of image, jpg, jpeg,
    /// png, webp, path, image_path, file_path, file_name, filename, img, image_bytes, image_base64 that is there].
    #[arg(long)]
    image_column: Option<String>,
    /// For tables and JSON: the column or key with the captions [default: the first of caption, text, TEXT, prompt, captions, texts,
    /// prompts that is there].
    #[arg(long)]
    caption_column: Option<String>,
}

impl ColumnArgs {
    /// As the library takes them.
    pub fn columns(&self) -> Columns {
        Columns { image: self.image_column.clone(), caption: self.caption_column.clone() }
    }
}

/// The same error, with the settings of the library called by the flags that they come from.
pub fn with_flags(error: anyhow::Error) -> anyhow::Error {
    use data::Error as E;
    let flag = |setting: &str| format!("--{}", setting.replace('_', "-"));
    match error.downcast::<E>() {
        Ok(E::Input { name, expected, got }) => BadInput(format!("{} {got}: expected {expected}", flag(&name))).into(),
        Ok(E::Column { path, problem, setting }) => BadFile::new(&path, problem, format!("name another with {}", flag(setting))).into(),
        Ok(E::TooManyBad { path, count, name, reason }) => {
            let problem = format!("{count} images cannot be used or have no caption, {name} is the last ({reason})");
            BadFile::new(&path, problem, "repair them, or allow more with --max-bad").into()
        }
        Ok(E::OtherCache { path }) => {
            let problem = "a cache of another model or of other sizes; choose another --out";
            BadInput(format!("--out {}: {problem}", path.display())).into()
        }
        Ok(other) => other.into(),
        Err(error) => error,
    }
}
