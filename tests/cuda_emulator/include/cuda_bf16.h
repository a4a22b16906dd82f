// The emulator's device.h, included before every kernel, has the half types.
