"""Where inputs and their second moments come from: calibration data, or synthetic inputs when there is none."""
