#pragma once

#include <cstddef>
#include <cstdlib>

// Memory of a thread that is kept from call to call: fresh pages cost more than what is computed in them.
struct Scratch {
    char* bytes = nullptr;
    size_t size = 0;

    ~Scratch() { free(bytes); }

    float* floats(size_t count) {
        size_t needed = (count * 4 + 63) / 64 * 64;
        if (needed > size) {
            free(bytes);
            size = needed + needed / 2;
            size = (size + 63) / 64 * 64;
            bytes = (char*)aligned_alloc(64, size);
            if (!bytes) abort();
        }
        return (float*)bytes;
    }
};
