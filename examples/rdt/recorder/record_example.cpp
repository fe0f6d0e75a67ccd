// Records one made-up episode of two arms and three cameras. A robot's loop calls append() in the same way.
//
//   g++ -std=c++17 -O2 record_example.cpp -o record_example $(pkg-config --cflags --libs hdf5-serial)
//   ./record_example datasets/mine/episode_0.hdf5 150 && vla-ft data check datasets/mine
//
// (Debian: libhdf5-dev brings hdf5-serial; elsewhere the package is often called hdf5.)
#include <cmath>
#include <cstdlib>
#include <iostream>

#include "episode_recorder.hpp"

namespace {

constexpr hsize_t kHeight = 48, kWidth = 64, kJoints = 14;

// The two arms at a moment: all joints swing, both grippers (6 and 13) open and close.
std::vector<float> joints_at(double seconds) {
    std::vector<float> found(kJoints);
    for (hsize_t i = 0; i < kJoints; ++i) {
        const double phase = 2.0 * seconds + 0.4 * static_cast<double>(i);
        found[i] = static_cast<float>(i % 7 == 6 ? 0.5 + 0.5 * std::sin(phase) : 0.6 * std::sin(phase));
    }
    return found;
}

// A bright square that moves over a ramp of colours, at another place for each camera.
std::vector<std::uint8_t> picture(int step, int camera) {
    std::vector<std::uint8_t> frame(kHeight * kWidth * 3);
    const hsize_t left = (static_cast<hsize_t>(step) + 13u * static_cast<hsize_t>(camera)) % (kWidth - 8);
    for (hsize_t y = 0; y < kHeight; ++y)
        for (hsize_t x = 0; x < kWidth; ++x) {
            const bool inside = y >= 20 && y < 28 && x >= left && x < left + 8;
            std::uint8_t* pixel = &frame[(y * kWidth + x) * 3];
            pixel[0] = inside ? 255 : static_cast<std::uint8_t>(3 * x);
            pixel[1] = inside ? 255 : static_cast<std::uint8_t>(4 * y);
            pixel[2] = static_cast<std::uint8_t>(60 * camera);
        }
    return frame;
}

}  // namespace

int main(int count, char** words) try {
    if (count != 3) throw std::runtime_error("usage: record_example episode_<number>.hdf5 STEPS");
    // Handles close all there is. HDF5's own clearing at the exit crashes where a file could not be written.
    H5dont_atexit();
    const int steps = std::atoi(words[2]);
    const double rate = 25.0;
    const std::vector<std::string> names{"cam_high", "cam_left_wrist", "cam_right_wrist"};
    std::map<std::string, vla_ft::CameraSize> cameras;
    for (const auto& name : names) cameras[name] = {kHeight, kWidth};
    vla_ft::EpisodeRecorder recorder(words[1], kJoints, kJoints, cameras);
    for (int step = 0; step < steps; ++step) {
        // What the arms measure now, and where they are told to be a step later.
        vla_ft::Step now{joints_at(step / rate), joints_at((step + 1) / rate), {}};
        std::vector<std::vector<std::uint8_t>> frames;
        for (int camera = 0; camera < 3; ++camera) frames.push_back(picture(step, camera));
        for (int camera = 0; camera < 3; ++camera) now.frames[names[camera]] = frames[camera].data();
        recorder.append(now);
    }
    recorder.finish("move both arms", rate, false);
    return 0;
} catch (const std::exception& error) {
    std::cerr << "record_example: " << error.what() << '\n';
    return 1;
}
