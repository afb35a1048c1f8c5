"""Words as sound: reading, resampling, levels. It must not know what is said, or by whom."""
