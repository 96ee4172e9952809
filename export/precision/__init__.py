"""float16 and int8: calibrate on the user's images and measure what the precision costs."""
