"""Small networks for experiments; for anything larger use torchvision or timm."""
