// Takes the place of the theme's script, which draws the icons a second time: see _config.yml.
