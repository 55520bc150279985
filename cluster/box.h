#ifndef CARAVAN_CLUSTER_BOX_H_
#define CARAVAN_CLUSTER_BOX_H_

// What one box can do: what predictions are made from. A box is put together from parts, each of
// which knows where its figures come from. As JSON: cluster/box_json.h; boxes that one need not
// own: cluster/known_boxes.h.

#include <cstdint>
#include <map>
#include <string>

namespace caravan {

/// Rates are a second, of all of the box's cores or disks together. Figures are what one gets, not
/// what a label says: a drive in a slower slot has the slot's rate.
struct Box {
  /// What all parts have.
  struct Part {
    std::string name;       // "NVIDIA GeForce RTX 3060", for people
    double price_yuan = 0;  // what it costs; 0: not known
    // Where figures come from (a data sheet by name, "measured"), by their names in JSON.
    std::map<std::string, std::string> sources;

    friend bool operator==(const Part&, const Part&) = default;
  };

  /// The cores, and the board around them.
  struct Cpu : Part {
    int cores = 0;             // that a worker may use
    std::string isa;           // as `--isa` of benches names it: avx512, avx2, portable
    double multiply_adds = 0;  // of block formats by 8-bit activations, where rows share a weight
    double attention_multiply_adds = 0;  // in f32, of queries by the KV cache
    int pcie_generation = 0;             // of its slots, for parts that may be bought; 0: not known

    friend bool operator==(const Cpu&, const Cpu&) = default;
  };
  struct Memory : Part {
    int64_t total_bytes = 0;
    int64_t bytes = 0;      // that a worker may take (`worker --ram`)
    double read_bytes = 0;  // by the CPU

    friend bool operator==(const Memory&, const Memory&) = default;
  };
  struct Disk : Part {
    int drives = 1;         // with copies of the same files (`worker --mirror`)
    int64_t bytes = 0;      // of each, for the model's files
    double read_bytes = 0;  // of all; of reads as large as experts, as the expert store makes them

    friend bool operator==(const Disk&, const Disk&) = default;
  };
  struct Card : Part {
    int count = 0;            // of such cards, which work one after the other; 0: there is none
    int64_t total_bytes = 0;  // of each
    int64_t bytes = 0;        // of each, that a worker may take (`worker --vram`)
    double read_bytes = 0;
    double multiply_adds = 0;  // by our kernels, of packed weights and of the KV cache
    double pcie_bytes = 0;     // from the box's memory; 0: nothing is copied there while it serves

    int64_t all_bytes() const { return count * bytes; }
    friend bool operator==(const Card&, const Card&) = default;
  };
  struct Network : Part {
    double bytes = 0;            // each way; 0: a message of any size takes the latency alone
    double latency_seconds = 0;  // of a small message, from process to process

    friend bool operator==(const Network&, const Network&) = default;
  };

  std::string name;
  Cpu cpu;
  Memory memory;
  Disk disk;
  Card card;
  Network network;

  /// Of all parts; 0 where the price of one that it has is not known.
  double price_yuan() const;

  friend bool operator==(const Box&, const Box&) = default;
};

/// What a worker may take of so much memory: all but a quarter, or but 8 GiB of more than 32.
int64_t WorkerMemory(int64_t total_bytes);
/// The same of a card: a gigabyte is the driver's and the workspace's.
int64_t WorkerVram(int64_t total_bytes);

}  // namespace caravan

#endif  // CARAVAN_CLUSTER_BOX_H_
