"""The images of a distillation: augmented ones to train on, and held-out ones that the student is not trained on."""

from amp.data.augmentation import augmentation
from amp.data.batches import Batches, Transform
from amp.data.listing import Listing
from amp.errors import UserError
from amp.run.console import say
from amp.settings.distill import DistillConfig
from amp.towers import Tower


def training_images(config: DistillConfig, teacher: Tower, listing: Listing) -> Batches:
    """The training split, augmented by the recipe `data.augment`, at the teacher's size and normalisation.

    Raises:
        UserError: there are none, or too few for a batch.
    """
    recipe, view, transform = config.data.augment, teacher.preprocess, teacher.transform
    if recipe != "none":
        transform = augmentation(recipe, teacher.image_size, view["mean"], view["std"], view["interpolation"])
    return Batches(listing.images("train"), transform, config.data)


def held_out_images(config: DistillConfig, transform: Transform, listing: Listing) -> Batches | None:
    """Whole batches of the validation split; None, and a line that says why, where there is none."""
    if config.output.eval_every == 0:
        return None
    num_samples = max(config.output.eval_images, config.data.batch_size)
    try:
        return Batches(listing.images("val"), transform, config.data, num_samples)
    except UserError as error:
        say(f"the loss on held-out images is not measured: {error}")
        return None
