"""What models are used for: classification, part segmentation and semantic segmentation."""
