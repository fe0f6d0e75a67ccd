// An episode file that vla-ft reads (docs/rdt.md, "Making a fine-tuning set"), written step by step with HDF5's C API.
//
// Rows reach the disk as they come, in chunks of one, so memory does not grow with the episode. The file gets its name
// in finish(): whoever reads the folder meanwhile sees no half-written episode.
#pragma once

#include <hdf5.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace vla_ft {

// One camera's frames: all of this size, RGB, rows from the top.
struct CameraSize {
    hsize_t height, width;
};

// What is recorded at each step: the measured joints, what was commanded, and a frame of each camera by its name.
struct Step {
    std::vector<float> qpos;
    std::vector<float> action;
    std::map<std::string, const std::uint8_t*> frames;
};

inline void check(herr_t status, const std::string& what) {
    if (status < 0) throw std::runtime_error("HDF5 could not " + what);
}

// An HDF5 identifier that is closed with its scope; an error of the library is an exception that says where.
class Handle {
  public:
    Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what) : id_(id), close_(close) {
        if (id_ < 0) throw std::runtime_error("HDF5 could not make " + what);
    }
    Handle(Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
        if (id_ >= 0) close_(id_);
    }
    operator hid_t() const { return id_; }
    // Close it now; throws where that fails, which a destructor cannot.
    void close(const std::string& what) { check(close_(std::exchange(id_, -1)), "close " + what); }

  private:
    hid_t id_;
    herr_t (*close_)(hid_t);
};

class EpisodeRecorder {
  public:
    // `path`: .../episode_<number>.hdf5 in the folder of the task. `joints`, `actions`: numbers a step, the same in all
    // episodes of a set.
    EpisodeRecorder(std::string path, hsize_t joints, hsize_t actions, std::map<std::string, CameraSize> cameras)
        : path_(std::move(path)),
          beside_(hidden(path_)),
          cameras_(std::move(cameras)),
          file_(H5Fcreate(beside_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT), H5Fclose, beside_) {
        Handle observations = group("/observations"), images = group("/observations/images");
        columns_.emplace("/action", rows("/action", H5T_NATIVE_FLOAT, {actions}));
        columns_.emplace("/observations/qpos", rows("/observations/qpos", H5T_NATIVE_FLOAT, {joints}));
        for (const auto& [name, size] : cameras_) {
            const std::string place = "/observations/images/" + name;
            columns_.emplace(place, rows(place, H5T_NATIVE_UINT8, {size.height, size.width, 3}));
        }
    }

    // Write one step. Throws for numbers of another length or a camera that is missing.
    void append(const Step& step) {
        add("/action", step.action.data(), step.action.size());
        add("/observations/qpos", step.qpos.data(), step.qpos.size());
        for (const auto& [name, size] : cameras_) {
            const auto frame = step.frames.find(name);
            if (frame == step.frames.end()) throw std::runtime_error("no frame of camera " + name);
            add("/observations/images/" + name, frame->second, size.height * size.width * 3);
        }
        ++steps_;
    }

    // Write what belongs to the episode as a whole and give the file its name. `simulated`: whether action t belongs to
    // observation t (RDT reads both kinds alike). Throws where the rows do not reach the disk, as on a full one; a
    // program that catches this calls H5dont_atexit() at its start, as record_example.cpp does.
    void finish(const std::string& instruction, double rate, bool simulated) {
        if (steps_ == 0) throw std::runtime_error("an episode without steps is no episode");
        const auto flag = static_cast<std::uint8_t>(simulated);
        attribute("sim", H5T_NATIVE_UINT8, &flag);
        attribute("fps", H5T_NATIVE_DOUBLE, &rate);
        Handle text(H5Tcopy(H5T_C_S1), H5Tclose, "a type of text");
        check(H5Tset_size(text, instruction.empty() ? 1 : instruction.size()), "size the text");
        check(H5Tset_cset(text, H5T_CSET_UTF8), "set the text's encoding");
        attribute("language_instruction", text, instruction.data());
        // Rows may wait in HDF5's memory until here: a disk that is full must be told before the file gets its name.
        check(H5Fflush(file_, H5F_SCOPE_LOCAL), "write " + beside_);
        columns_.clear();
        file_.close(beside_);
        if (std::rename(beside_.c_str(), path_.c_str()) != 0) throw std::runtime_error("cannot rename to " + path_);
    }

  private:
    struct Column {
        Handle data;
        hid_t type;
        std::vector<hsize_t> shape;  // of one row
    };

    static std::string hidden(const std::string& path) {
        const auto cut = path.find_last_of('/');
        return cut == std::string::npos ? "." + path : path.substr(0, cut + 1) + "." + path.substr(cut + 1);
    }

    Handle group(const char* name) const {
        return {H5Gcreate2(file_, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT), H5Gclose, name};
    }

    Column rows(const std::string& name, hid_t type, std::vector<hsize_t> shape) const {
        std::vector<hsize_t> start{0}, most{H5S_UNLIMITED}, chunk{1};
        for (auto* one : {&start, &most, &chunk}) one->insert(one->end(), shape.begin(), shape.end());
        Handle space(H5Screate_simple(static_cast<int>(start.size()), start.data(), most.data()), H5Sclose, name);
        Handle form(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, name);
        check(H5Pset_chunk(form, static_cast<int>(chunk.size()), chunk.data()), "chunk " + name);
        Handle data(H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, form, H5P_DEFAULT), H5Dclose, name);
        return {std::move(data), type, std::move(shape)};
    }

    void add(const std::string& name, const void* values, hsize_t count) {
        const Column& column = columns_.at(name);
        hsize_t wanted = 1;
        for (const hsize_t size : column.shape) wanted *= size;
        if (count != wanted) throw std::runtime_error(name + " needs " + std::to_string(wanted) + " numbers a step");
        std::vector<hsize_t> all{steps_ + 1}, start{steps_}, one{1};
        all.insert(all.end(), column.shape.begin(), column.shape.end());
        one.insert(one.end(), column.shape.begin(), column.shape.end());
        start.resize(one.size(), 0);
        check(H5Dset_extent(column.data, all.data()), "extend " + name);
        Handle space(H5Dget_space(column.data), H5Sclose, name);
        check(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, one.data(), nullptr), "select a row");
        Handle memory(H5Screate_simple(static_cast<int>(one.size()), one.data(), nullptr), H5Sclose, name);
        check(H5Dwrite(column.data, column.type, memory, space, H5P_DEFAULT, values), "write " + name);
    }

    void attribute(const char* name, hid_t type, const void* value) const {
        Handle space(H5Screate(H5S_SCALAR), H5Sclose, name);
        Handle made(H5Acreate2(file_, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose, name);
        check(H5Awrite(made, type, value), std::string("write ") + name);
    }

    std::string path_, beside_;
    std::map<std::string, CameraSize> cameras_;
    Handle file_;
    std::map<std::string, Column> columns_;
    hsize_t steps_ = 0;
};

}  // namespace vla_ft
