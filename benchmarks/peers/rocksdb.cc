// RocksDB as an embedding store is commonly tuned: direct I/O, no compression, no write-ahead log,
// Bloom filters, page-aligned blocks, one MultiGet for each thread's share of a batch.
// Compiled by rocksdb.py where the headers of RocksDB are installed.
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

using namespace rocksdb;

namespace {
constexpr size_t kGroup = 256;     // keys of one MultiGet
constexpr uint64_t kWrites = 1024;  // rows of one write batch

uint64_t BigEndian(uint64_t key) { return __builtin_bswap64(key); }

BlockBasedTableOptions Blocks(uint64_t cache_bytes) {
  BlockBasedTableOptions blocks;
  blocks.block_size = 4096;
  blocks.block_align = true;
  blocks.filter_policy.reset(NewBloomFilterPolicy(10));
  blocks.format_version = 5;
  blocks.data_block_index_type = BlockBasedTableOptions::kDataBlockBinaryAndHash;
  blocks.cache_index_and_filter_blocks = true;
  blocks.cache_index_and_filter_blocks_with_high_priority = true;
  blocks.pin_l0_filter_and_index_blocks_in_cache = true;
  blocks.block_cache = NewLRUCache(cache_bytes, 4, false, 0.5);
  return blocks;
}

using Sorted = std::vector<std::pair<uint64_t, uint32_t>>;

bool Read(DB* db, const Sorted& keys, size_t first, size_t end, char* rows, uint64_t width) {
  ReadOptions options;
  options.async_io = true;
  options.optimize_multiget_for_io = true;
  uint64_t names[kGroup];
  Slice slices[kGroup];
  PinnableSlice values[kGroup];
  Status status[kGroup];
  for (size_t start = first; start < end; start += kGroup) {
    size_t count = std::min(kGroup, end - start);
    for (size_t i = 0; i < count; i++) {
      names[i] = BigEndian(keys[start + i].first);
      slices[i] = Slice(reinterpret_cast<char*>(&names[i]), sizeof names[i]);
      values[i].Reset();
    }
    db->MultiGet(options, db->DefaultColumnFamily(), count, slices, values, status, true);
    for (size_t i = 0; i < count; i++) {
      if (!status[i].ok() || values[i].size() != width) return false;
      std::memcpy(rows + keys[start + i].second * width, values[i].data(), width);
    }
  }
  return true;
}
}  // namespace

extern "C" {
void* store_open(const char* path, uint64_t cache_bytes, uint64_t write_buffer_bytes) {
  Options options;
  options.create_if_missing = true;
  options.compression = kNoCompression;
  options.use_direct_reads = true;
  options.use_direct_io_for_flush_and_compaction = true;
  options.write_buffer_size = write_buffer_bytes / 2;
  options.max_write_buffer_number = 2;
  options.max_background_jobs = 2;
  options.target_file_size_base = 32 << 20;
  options.max_bytes_for_level_base = 128 << 20;
  options.level_compaction_dynamic_level_bytes = true;
  options.max_open_files = -1;
  options.avoid_unnecessary_blocking_io = true;
  options.compaction_readahead_size = 2 << 20;
  options.table_factory.reset(NewBlockBasedTableFactory(Blocks(cache_bytes)));
  DB* db = nullptr;
  return DB::Open(options, path, &db).ok() ? db : nullptr;
}

int store_put(void* store, const uint64_t* keys, uint64_t count, const char* rows, uint64_t width) {
  WriteOptions options;
  options.disableWAL = true;
  for (uint64_t start = 0; start < count; start += kWrites) {
    WriteBatch batch;
    for (uint64_t i = start; i < std::min(count, start + kWrites); i++) {
      uint64_t name = BigEndian(keys[i]);
      batch.Put(Slice(reinterpret_cast<char*>(&name), sizeof name),
                Slice(rows + i * width, width));
    }
    if (!static_cast<DB*>(store)->Write(options, &batch).ok()) return 0;
  }
  return 1;
}

// Rows in the order of `keys`; 0 if one is missing.
int store_get(void* store, const uint64_t* keys, uint64_t count, char* rows, uint64_t width,
              int threads) {
  Sorted sorted(count);
  for (uint64_t i = 0; i < count; i++) sorted[i] = {keys[i], static_cast<uint32_t>(i)};
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::thread> running;
  std::vector<char> whole(threads, 1);
  for (int t = 0; t < threads; t++) {
    running.emplace_back([&, t] {
      whole[t] = Read(static_cast<DB*>(store), sorted, count * t / threads,
                      count * (t + 1) / threads, rows, width);
    });
  }
  for (auto& thread : running) thread.join();
  return std::all_of(whole.begin(), whole.end(), [](char x) { return x; });
}

// Flushes, and compacts everything if `whole`.
void store_settle(void* store, int whole) {
  DB* db = static_cast<DB*>(store);
  db->Flush(FlushOptions());
  if (whole) db->CompactRange(CompactRangeOptions(), nullptr, nullptr);
}

void store_close(void* store) { delete static_cast<DB*>(store); }
}
