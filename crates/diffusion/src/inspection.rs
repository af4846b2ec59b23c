//! What a reader must know of a model beside its layers: schedule and sizes of images. Model directory -> **layers.json** -> report.

use artifact::file_sha256;
use unet::{Inspection, ModelSource, StoredUNet, TableSizes, weight_files};

use crate::error::Result;
use crate::model_dir::ModelDir;
use crate::scheduler_config::SchedulerConfig;
use crate::vae::VaeConfig;

/// The layer table of a model for the given sizes, with what its schedule and autoencoder say where it has them.
///
/// # Errors
/// When the U-Net's files cannot be read, or for a size out of range.
pub fn inspect(model: &ModelSource, sizes: TableSizes) -> Result<Inspection> {
    let (h, w) = sizes.latent.map_or(model.latent_size(), |n| (n, n));
    // Pixels per latent.
    let whole = ModelDir::open(model.path(), None).ok();
    let vae = whole.as_ref().map_or_else(|| VaeConfig::open(model.path().join("vae")).ok(), |whole| whole.vae_config().ok());
    let factor = vae.map(|config| config.downscale());
    let schedule = whole.map_or_else(|| SchedulerConfig::open(model.path()).ok(), |whole| whole.said_scheduler().ok().flatten());
    let prediction_type = match &schedule {
        Some(schedule) => Some(schedule.prediction_type.name().to_string()),
        // A U-Net alone may say it by its markers.
        None if model.path().is_file() && model.has_weights() => {
            StoredUNet::open(model.path())?.markers().prediction.map(|prediction| prediction.name().to_string())
        }
        None => None,
    };
    let hashed = if model.has_weights() { weight_files(model.unet())?.swap_remove(0) } else { model.path().into() };
    Ok(Inspection {
        family: model.family().into(),
        prediction_type,
        num_train_timesteps: schedule.as_ref().map(|c| c.num_train_timesteps),
        latent: [h, w],
        image: factor.map(|f| [h * f, w * f]),
        unet_sha256: file_sha256(&hashed)?,
        table: model.table(sizes)?,
    })
}
