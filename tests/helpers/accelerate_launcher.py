"""accelerate's command line, which imports timm, beside a torchvision that is made for another torch."""

from replknet_ext.training.libraries import timm

timm()

from accelerate.commands.accelerate_cli import main  # noqa: E402

if __name__ == "__main__":
    main()
