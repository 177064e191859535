"""Models from files and to files: folders of ours, published checkpoints, whatever a user names."""

from amp.models.folder import FolderConfig, is_model_folder, load_tower, read_folder_config, save_tower
from amp.models.open import check_student, describe_published, load_student, open_published, open_tower
from amp.models.published import published_widths, write_published

__all__ = [
    "FolderConfig",
    "check_student",
    "describe_published",
    "is_model_folder",
    "load_student",
    "load_tower",
    "open_published",
    "open_tower",
    "published_widths",
    "read_folder_config",
    "save_tower",
    "write_published",
]
