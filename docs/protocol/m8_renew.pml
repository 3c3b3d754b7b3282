/* M8: a renewal, killed anywhere or cut off from power, and the starts after it.  The start/stop lock lets one process at a
 * time do either, so one process plays them all; another has had the pool open since before.
 * A life is a numbering of thin ids.  Records, metadata and side files of a pool that runs are of the same life (the
 * assertion in start); a copy is of the life after; what is not synced may be lost, torn or kept by a cut. */
#define NONE 9
#ifndef ROUNDS
#define ROUNDS 4
#endif
#ifndef CRASHES
#define CRASHES 3
#endif
byte rec, m, b;                          /* life of the records, the metadata, the side files */
byte c = NONE, d = NONE;                 /* the copies of metadata and of side files: life in their name */
byte cq, dq;                             /* 0 torn, 1 not synced, 2 durable */
bit um, ub; byte mo, bo; bit torn;       /* renamed, and the folder not synced: what was there before */
byte cursor = NONE, gone;                /* life of the window in the cursor; of what a process saw gone */
byte t, rounds, crashes;

inline lose(x, q) { if :: x != NONE && q == 1 -> if :: q = 2 :: q = 0 :: x = NONE fi :: else fi }
inline cut() { atomic {
  lose(c, cq); lose(d, dq);
  if :: um -> um = 0; if :: skip :: c = m; m = mo fi :: else fi;
  if :: ub -> ub = 0; if :: skip :: d = b; b = bo fi :: else fi;
  cursor = NONE } }                      /* the cursor does not outlive a boot */
#define STEP if :: skip :: crashes < CRASHES -> crashes++; goto next :: crashes < CRASHES -> crashes++; cut(); goto next fi
#ifdef M_ANYCOPY                         /* the names of the copies do not say of what life they are */
#define MINE(x) (x != NONE)
#else
#define MINE(x) (x == rec)
#endif
inline drop() { c = NONE; d = NONE }
#ifdef M_NOSYNC_FOLDER                   /* what a dead process has renamed is taken for durable */
#define SYNC STEP
#else
#define SYNC atomic { um = 0; ub = 0 }; STEP
#endif
inline swapm() { mo = m; m = c; torn = torn || cq == 0; c = NONE; um = 1; STEP }
inline swapb() { if :: MINE(d) -> bo = b; b = d; torn = torn || dq == 0; d = NONE; ub = 1; STEP :: else fi; SYNC }
#ifdef M_META_FIRST
#define SWAP swapm(); swapb()
#else
#define SWAP swapb(); swapm()
#endif
inline start() {
#ifndef M_NOFINISH
  if :: MINE(c) -> SWAP :: else fi;
#endif
  SYNC;
  drop(); STEP;
  assert(m == rec && b == rec && !torn);                    /* what a node is called leads to what it was */
  assert(cursor == NONE || cursor == rec); cursor = rec;    /* the next id is taken from a window of this life */
#ifndef M_KEEPGONE
  if :: gone != rec -> gone = rec :: else fi;
#endif
  assert(gone == rec);                                      /* what was seen gone is not somebody else */
  STEP
}
inline renew() {
  start();
  t = rec + 1;
  c = t; cq = 1; STEP; d = t; dq = 1; STEP;
#ifndef M_NOSYNC
  if :: c != NONE -> cq = 2 :: else fi; if :: d != NONE -> dq = 2 :: else fi; STEP;
#endif
#ifdef M_SWAP_FIRST
  mo = m; m = c; c = NONE; um = 1; STEP; um = 0; STEP;
#endif
#ifndef M_KEEPCURSOR
  cursor = NONE; STEP;
#endif
  rec = t;                                                  /* one transaction decides */
  STEP;
#ifdef M_DROP                            /* the transaction seemed to fail, and was written */
  if :: skip :: drop(); goto next fi;
#endif
  start()
}
active proctype Driver() {
next:
  do
  :: rounds < ROUNDS -> rounds++; if :: skip -> renew() :: skip -> start() fi
  :: rounds == ROUNDS -> rounds++; crashes = CRASHES; start()    /* whatever happened, it starts in the end */
  :: rounds > ROUNDS -> break
  od
}
