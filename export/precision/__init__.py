"""Float16 and int8 backbones: conversion, calibration images, and the measured cost."""
