"""Instance-conditioned GAN with a BigGAN backbone."""
